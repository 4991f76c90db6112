#!/usr/bin/env python3
"""Compares vocabularies that `drover tokenizer train` learns with those of the `tokenizers` package.

    pip install tokenizers==0.23.3
    python tests/reference/bpe_judge.py DROVER TOKENIZER_PROBE

DROVER is the built program, TOKENIZER_PROBE the built tokenizer_probe. On texts that are made here
from a seed, both train with the same pattern, size and control tokens. The merges must be the same in
the same order, ties included: both prefer the pair of smaller ids. Drover's tokenizer.json is then
read by both sides, and 2,000 random strings must encode to the same tokens, as text and with control
tokens; the package must write it back unchanged in meaning. Exits with 1 on any difference.
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tokenizer_check import PATTERNS, compare, drover, ids, plain, strings

SEED = 20261127
SYLLABLES = "har bour clock ship keep er light stone sea wind mar ket ing ed ly un the an and of to".split()
ODD = ["naïve café", "Straße", "日本語 東京", "🙂🙂", "e\u0301", "don't", "WE'LL", "1234567", "a//b\n", "x²", "…"]


def text(rng, words):
    """Words of syllables, common ones often, with punctuation, capitals, numbers and other scripts."""
    known = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(len(known))]
    out = []
    for word in rng.choices(known, weights, k=words):
        kind = rng.randrange(40)
        if kind == 0:
            word = word.capitalize()
        elif kind == 1:
            word = str(rng.randrange(10**rng.randint(1, 8)))
        elif kind == 2:
            word = rng.choice(ODD)
        elif kind == 3:
            word = rng.choice("ab") * rng.randint(1, 12)
        out.append(word + rng.choice(["", "", "", "", "", ",", ".", "!\n", "\n\n", "\r\n", "  "]))
    return " ".join(out)


def pre_tokenizer(pattern):
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_judge(texts, pattern, size, special, least):
    judge = Tokenizer(models.BPE())
    judge.pre_tokenizer = pre_tokenizer(pattern)
    judge.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, min_frequency=least, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return judge


def merges_of(state):
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in state["model"]["merges"]]


def check(program, probe, folder, label, texts, pattern, size, least):
    files = []
    for i, one in enumerate(texts):
        files.append(folder / f"{label}-{i}.txt")
        files[-1].write_text(one, encoding="utf-8", newline="")
    out = folder / f"{label}.json"
    report = json.loads(subprocess.run(
        [program, "tokenizer", "train", *map(str, files), "--vocab", str(size), "--pattern", pattern,
         "--min-frequency", str(least), "--out", str(out), "--json"],
        stdout=subprocess.PIPE, check=True).stdout)
    own = json.loads(out.read_text())
    special = [token["content"] for token in own["added_tokens"]]
    judge = train_judge(texts, pattern, size, special, least)

    wrong = 0
    got, expected = merges_of(own), merges_of(json.loads(judge.to_str()))
    same = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b),
                min(len(got), len(expected)))
    print(f"{label}: {len(got)} merges, the judge's {len(expected)}, the first {same} the same")
    wrong += got != expected
    read = Tokenizer.from_file(str(out))
    encoded = sum(map(len, ids(plain(read), texts)))
    print(f"{label}: {report['tokens']} tokens for {report['bytes']} bytes, the judge counts {encoded}")
    wrong += report["tokens"] != encoded
    wrong += read.get_vocab_size() != report["vocabulary"]

    samples = strings(2000, SEED)
    samples[0] = "".join(special)
    for mode, what, judged in ((b"t", "text", plain(read)), (b"s", "special", read)):
        wrong += compare(f"{label} {what}", samples, ids(judged, samples),
                         drover(probe, ["json", out], samples, mode))
    whole = read.encode("a").ids  # begin-of-text, if there is one, and the text
    bos = read.token_to_id("<|begin_of_text|>")
    wrong += whole != ([] if bos is None else [bos]) + ids(plain(read), ["a"])[0]
    # The package's own writing of it: Drover encodes the same.
    again = folder / f"{label}-again.json"
    read.save(str(again))
    wrong += compare(f"{label} written by the judge", samples, ids(plain(read), samples),
                     drover(probe, ["json", again], samples, b"t"))
    return wrong


def main():
    program, probe = sys.argv[1:3]
    rng, wrong = random.Random(SEED), 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cases = [("llama4", [text(rng, 20000)], "llama4", 1500, 2),
                 ("several", [text(rng, 4000) for _ in range(5)], "llama4", 2000, 1),
                 ("gpt2", [text(rng, 10000)], "gpt2", 1000, 5),
                 ("llama3", [text(rng, 10000)], "llama3", 800, 2),
                 ("small", ["low lower lowest, new newer newest"], "llama4", 1000, 2)]
        for case in cases:
            wrong += check(program, probe, folder, *case)
    print(f"seed {SEED}, {wrong} differences in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
