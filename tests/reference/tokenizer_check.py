#!/usr/bin/env python3
"""Compares Drover's tokenizer with the `tokenizers` package on many seeded strings.

    pip install tokenizers==0.23.3
    python tests/reference/tokenizer_check.py PROBE [--shared ../shared/data] [--strings 20000]
        [--gguf SmolLM2.gguf]     also that file's vocabulary; needs `pip install gguf`
        [--golden FILE]           writes tests/data/text/tokenizer_golden.json from the same judge

PROBE is the built tokenizer_probe. The vocabularies of Llama 4 and Llama 3 are built for the judge
from the tiktoken files by the rules of spec 7.5; Drover reads the tiktoken file and, a second time,
the tokenizer.json that the judge saves. Prints "N strings, M differences" for each and exits with 1
on any. A vocabulary that is not there is skipped, and said so.
"""
import argparse
import base64
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

SEED = 20250405
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama4": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + REST,
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + REST,
}
# Enough of the special tokens to check that their texts are found: (first id, texts).
SPECIALS = {
    "llama4": ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix",
               "header_start", "header_end", "eom", "eot", "step",
               *(f"text_post_train_reserved_special_token_{i}" for i in range(6)),
               "python_start", "python_end"],
    "llama3": ["begin_of_text", "end_of_text", "reserved_special_token_0",
               "reserved_special_token_1", "finetune_right_pad_id", "reserved_special_token_2",
               "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"],
}


def byte_alphabet():
    """Byte -> character: printable bytes are themselves, the others U+0100 and up."""
    table, extra = {}, 0x100
    for b in range(256):
        if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE:
            table[b] = chr(b)
        else:
            table[b] = chr(extra)
            extra += 1
    return table


def byte_level_bpe(vocab, merges, pre, ignore_merges):
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def judge_from_tiktoken(name, path):
    alphabet = byte_alphabet()
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    merges = []
    for token, rank in ranks.items():
        splits = [(ranks[token[:i]], ranks[token[i:]], token[:i], token[i:])
                  for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(rank, *split) for split in splits]
    merges.sort(key=lambda m: m[:3])
    spell = lambda token: "".join(alphabet[b] for b in token)
    tokenizer = byte_level_bpe(
        {spell(t): r for t, r in ranks.items()},
        [(spell(left), spell(right)) for _, _, _, left, right in merges],
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ignore_merges=True)
    tokenizer.add_special_tokens(
        [AddedToken(f"<|{text}|>", normalized=False, special=True) for text in SPECIALS[name]])
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                      special_tokens=[(bos, len(ranks))])])
    return tokenizer


def judge_from_smollm(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    read = lambda key: fields["tokenizer.ggml." + key].contents()
    assert read("pre") == "smollm"
    tokens, types = read("tokens"), read("token_type")
    tokenizer = byte_level_bpe(
        {t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in read("merges")],
        pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
        ignore_merges=False)
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == 3])
    return tokenizer


WORDS = """the of and I'm can't WE'LL they'd it's IT'S don't O'Neil you're You'Re 've 'S 'ſ it'ſ
naïve café Straße ŁÓDŹ ÉCOLE Ǆ ǅ ǆ ʰ ª º İstanbul ΑΘΗΝΑ Αθήνα МОСКВА Москва Հայաստան ქართული
日本語 東京タワー 한국어 नमस्ते दुनिया ภาษาไทย עברית العربيّة ١٢٣ ½ ² Ⅷ 一二三 12 1234567 3.14159 1e-9 0x7fff
def return lambda x: {}; <html> </div> a/b//c http://x.y/z?a=1 user@example.com #include <vector>
camelCase HTTPServer snake_case SCREAMING_CASE iPhone LaTeX x² 5µm → ∑ ≤ € … — “quoted” «guillemets»
😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ é e\u0301 A\u0300B \u0301\u0302 \u200b \u200d \ufeff \u00ad \ufffd \x00 \x07 \x1b[31m \x7f \x85
<|eot|> <|begin_of_text|> <|eot_id|> <|im_end|> <|endoftext|> <| |> <|header_start|>user""".split()
# split() takes these for white space.
WORDS += ["\x1c", "\x1f", "\x85"]
SPACES = [" ", " ", " ", " ", "", "", "\n", "\n\n", "\r\n", "\r", "\t", "  ", "   ", "\u00a0", "\u3000",
          "\u2028", "\v", "\f", "\x85", " \n", "\n ", "\n\n  \n   ", "        ", "/\n", "\t\t"]
# Blocks with letters of all cases, marks, digits, symbols, scripts of Unicode 15 and 16, emoji.
BLOCKS = [(0x00, 0x7F), (0x00, 0x17F), (0x180, 0x24F), (0x250, 0x2FF), (0x300, 0x36F),
          (0x370, 0x52F), (0x531, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x10A0, 0x10FF),
          (0x1C80, 0x1CFF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x2BFF),
          (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xA640, 0xA7FF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
          (0xFF00, 0xFFEF), (0x10400, 0x104FF), (0x105C0, 0x105FF), (0x10D40, 0x10D8F),
          (0x11F00, 0x11F5F), (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x1F300, 0x1FAFF),
          (0x31350, 0x323AF), (0x00, 0x10FFFF)]


def random_string(rng):
    kind = rng.randrange(10)
    if kind < 4:  # words and spaces
        return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 12)))
    if kind < 7:  # characters of a few blocks
        blocks = rng.sample(BLOCKS, rng.randint(1, 3))
        out = []
        for _ in range(rng.randint(1, 24)):
            c = rng.randint(*rng.choice(blocks))
            out.append(chr(c) if not 0xD800 <= c < 0xE000 else "?")
            if rng.random() < 0.2:
                out.append(rng.choice(SPACES))
        return "".join(out)
    if kind == 7:  # few different characters: long runs, ties between merges
        letters = rng.choice(["a", "ab", "aA", " \n", "  x", "'s", "0", "01 ", "日A", "\u0301a!", "-=", "/\n"])
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 200)))
    if kind == 8:  # words run together, all cases
        return "".join(rng.choice([str.upper, str.lower, str.title, str])(rng.choice(WORDS))
                       for _ in range(rng.randint(1, 8)))
    return "".join(chr(rng.randint(0, 0x7F)) for _ in range(rng.randint(0, 40)))  # ASCII noise


def strings(count, seed=SEED):
    rng = random.Random(seed)
    return [random_string(rng) for _ in range(count)]


def drover(probe, arguments, texts, mode):
    """The tokens that the probe makes of each text, see tokenizer_probe.cpp."""
    request = b"".join(mode + struct.pack("<I", len(b)) + b for b in (t.encode() for t in texts))
    answer = subprocess.run([probe, *map(str, arguments)], input=request, stdout=subprocess.PIPE,
                            check=True).stdout
    out, at = [], 0
    for _ in texts:
        (n,) = struct.unpack_from("<I", answer, at)
        out.append(list(struct.unpack_from(f"<{n}i", answer, at + 4)))
        at += 4 + 4 * n
    assert at == len(answer)
    return out


def compare(label, texts, expected, got):
    wrong = [i for i in range(len(texts)) if expected[i] != got[i]]
    print(f"{label}: {len(texts)} strings, {len(wrong)} differences", flush=True)
    for i in wrong[:5]:
        print(f"  string {i} {texts[i]!r}\n    expected {expected[i]}\n    got      {got[i]}")
    return len(wrong)


def plain(judge):
    """The same tokenizer without its special tokens: how a user's text must be read."""
    state = json.loads(judge.to_str())
    state["added_tokens"], state["post_processor"] = [], None
    return Tokenizer.from_str(json.dumps(state))


def ids(judge, texts):
    return [e.ids for e in judge.encode_batch(texts, add_special_tokens=False)]


def check(name, judge, tiktoken, args):
    texts = strings(args.strings)
    as_text, as_template = ids(plain(judge), texts), ids(judge, texts)
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder) / "tokenizer.json"
        judge.save(str(saved))
        forms = ([("tiktoken", tiktoken)] if tiktoken else []) + [("json", saved)]
        wrong = 0
        for form, path in forms:
            for mode, what, expected in ((b"t", "text", as_text), (b"s", "special", as_template)):
                got = drover(args.probe, [form, path], texts, mode)
                wrong += compare(f"{name} {form} {what}", texts, expected, got)
    return wrong


def golden_pieces():
    """Pieces need no vocabulary: a string, and for each pattern the lengths of its pieces in bytes."""
    whole = lambda pattern: pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    judges = [
        whole(PATTERNS["llama4"]), whole(PATTERNS["llama3"]), gpt2,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])]
    texts = [t for t in strings(300, SEED + 2) if len(t) < 60]
    return [[t] + [[len(piece) for piece, _ in judge.pre_tokenize_str(t)] for judge in judges]
            for t in texts]


def golden_lossy():
    """Broken UTF-8 and how a decoder with replacement shows it: hexadecimal bytes, text."""
    rng, out = random.Random(SEED + 3), []
    ingredients = ["a", "é", "日", "😀", "\U0010ffff", "\ud7ff"]
    for _ in range(200):
        data = b""
        for _ in range(rng.randint(1, 6)):
            part = rng.choice(ingredients).encode()
            data += rng.choice([part, part[:rng.randint(1, len(part))], bytes([rng.randint(0, 255)]),
                                b"\xed\xa0\x80", b"\xf4\x90", b"\xe0\x80", b"\xc0\xaf"])
        out.append([data.hex(), data.decode("utf-8", errors="replace")])
    return out


def write_golden(path, shared):
    golden = {"pieces": golden_pieces(), "lossy": golden_lossy()}
    for name in ("llama4", "llama3"):
        judge = plain(judge_from_tiktoken(name, shared / name / "tokenizer.model"))
        texts = [t for t in strings(400, SEED + 1) if len(t) < 60][:250]
        golden["tokens_" + name] = list(zip(texts, ids(judge, texts)))
    tables = (f'"{name}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
              + "\n]" for name, rows in golden.items())
    path.write_text("{" + ",\n".join(tables) + "}\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("probe", nargs="?")
    parser.add_argument("--shared", default="../shared/data", type=pathlib.Path)
    parser.add_argument("--strings", default=20000, type=int)
    parser.add_argument("--gguf")
    parser.add_argument("--golden", type=pathlib.Path)
    args = parser.parse_args()
    if args.golden:
        return write_golden(args.golden, args.shared)
    start, wrong = time.time(), 0
    for name in ("llama4", "llama3"):
        path = args.shared / name / "tokenizer.model"
        if not path.exists():
            print(f"{name}: skipped, {path} is not there")
            continue
        wrong += check(name, judge_from_tiktoken(name, path), path, args)
    if args.gguf:
        wrong += check("smollm2", judge_from_smollm(args.gguf), None, args)
    print(f"seed {SEED}, {time.time() - start:.0f} s, {wrong} differences in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
