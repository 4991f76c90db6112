"""Edge as others read it: transformers its folder, llama.cpp its text part. Rows of a Markdown table.

    python edge_judge.py transformers DROVER FOLDER    (requirements-vision-goldens.txt)
    python edge_judge.py llama-cpp DROVER FOLDER       (requirements-llama-cpp.txt)

recipes/edge/judges finds a Python for each and runs this. FOLDER is in Hugging Face's form. All compute in
f32 on the folder's weights, Drover on a GGUF file that it makes of the folder.

* transformers: logits behind every token of a text that is longer than chunks (512) and than the floor of
  the temperature (4,096), and of a question about a picture of one tile, to 1e-4 of the largest logit.
  The picture moves them by 1e-2 or more, or it proves nothing.
* llama.cpp, with a cache in f32 (its f16 moves logits of random weights by 1e-3, and where two experts are
  as good as each other, by more): logits and greedy tokens behind every token of texts, and greedy
  answers. It takes chunks of 8,192 tokens and a floor of 8,192 whatever the file says, so what it computes
  is this model up to 512 tokens only. A token counts as another one where Drover's logits of the two are
  further apart than what both may be off.

Exit status: 0 as demanded, 1 not.
"""

import importlib.metadata
import json
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TEXT = HERE / "harbour.txt"  # written for such purposes
TOLERANCE, MATTERS = 1e-4, 1e-2
LONG = 4608  # tokens: 9 chunks, and 512 beyond the floor
KNOWN = 512  # as far as llama.cpp has the same model
QUESTIONS = [
    "Hello!",
    "Who are you?",
    "What can you do?",
    "What is the opposite of hot?",
    "What is 3 plus 4?",
    "What colour is snow?",
    "Which day comes after Monday?",
    "How many legs does a spider have?",
    "Is a hammer a tool?",
    "Anna has a red ball. Tom has a blue kite. What does Tom have?",
]


def difference(a, b):
    return float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())


class Drover:
    def __init__(self, binary, folder, work, *how):
        self.binary, self.work = binary, work
        self.model = work / "f32.gguf"
        self.run("convert", folder, self.model, "--type", "f32", *how)

    def run(self, *args):
        command = [str(a) for a in (self.binary, *args)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def tokens(self, text):
        """Names of control tokens become those tokens."""
        return [t["id"] for t in json.loads(self.run("tokenize", self.model, text, "--special", "--json"))]

    def logits(self, tokens, *image):
        file = self.work / "logits.npy"
        flags = [part for path in image for part in ("--image", path)]
        self.run("score", self.model, "--tokens", ",".join(map(str, tokens)), "--logits", file, *flags)
        return np.load(file)

    def greedy(self, text, most):
        asked = ("--raw", "--special", "--json", "--temp", 0, "--repeat-penalty", 1, "-n", most)
        return json.loads(self.run("run", self.model, "-p", text, *asked))["tokens"]


def chat(content):
    return (
        f"<|begin_of_text|><|header_start|>user<|header_end|>\n\n{content}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )


def draw(size):
    """Colours that run from corner to corner, and a disc: [size, size, 3] bytes."""
    y, x = np.mgrid[:size, :size]
    disc = (x - size / 3) ** 2 + (y - size / 2) ** 2 < (size / 4) ** 2
    rgb = np.stack([x * 255 // size, y * 255 // size, (x + y) * 127 // size], axis=-1)
    return np.where(disc[..., None], [200, 30, 40], rgb).astype(np.uint8)


def write_png(path, pixels):
    def part(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")
    )


class Table:
    def __init__(self, judge):
        self.judge = f"{judge} {importlib.metadata.version(judge)}"
        self.good = True

    def row(self, what, found, wanted, good):
        print(f"| {self.judge} | {what} | {found} | {wanted} |", flush=True)
        self.good = self.good and good

    def logits(self, what, off):
        self.row(what, f"logits differ by {off:.1e}", f"at most {TOLERANCE:.0e}", off <= TOLERANCE)


def judge_transformers(drover, folder, work):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    table = Table("transformers")

    @torch.no_grad()
    def logits(tokens, **pictures):
        return model(input_ids=torch.tensor([tokens]), use_cache=False, **pictures).logits[0].numpy()

    text = drover.tokens(TEXT.read_text())
    tokens = (text * (LONG // len(text) + 1))[:LONG]
    table.logits(f"{LONG:,} tokens of text", difference(drover.logits(tokens), logits(tokens)))

    if not hasattr(config, "vision_config"):
        return table.good
    pixels = draw(config.vision_config.image_size)
    picture = work / "picture.png"
    write_png(picture, pixels)
    side = config.vision_config.image_size // config.vision_config.patch_size
    patches = int(side * side * config.vision_config.pixel_shuffle_ratio**2)
    shown = f"<|image_start|><|image|>{'<|patch|>' * patches}<|image_end|>"
    tokens = drover.tokens(chat(f"{shown}What is in the picture?"))
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    theirs = logits(tokens, pixel_values=(values / 255 - 0.5) / 0.5)
    what = f"a picture of {len(pixels)} x {len(pixels)} pixels and a question"
    table.logits(what, difference(drover.logits(tokens, picture), theirs))
    moved = difference(logits(tokens, pixel_values=torch.zeros_like(values)), theirs)
    found = f"logits move by {moved:.1e}"
    table.row("the same without what is in it", found, f"at least {MATTERS:.0e}", moved >= MATTERS)
    return table.good


def same_choices(ours, tokens):
    """Of each of Drover's rows, whether this token is the best, or as good as it."""
    best = ours.max(axis=1)
    chosen = ours[np.arange(len(tokens)), tokens]
    return (best - chosen) <= 2 * TOLERANCE * np.abs(ours).max()


def judge_llama_cpp(drover, folder, work):
    from llama_cpp_judge import NEW_TOKENS, LlamaCpp

    table = Table("llama-cpp-python")
    theirs = LlamaCpp(drover.model, context=KNOWN, f32_cache=True)
    text = drover.tokens(TEXT.read_text())
    same, total, said, off = 0, 0, set(), 0.0
    for first in range(0, len(text) - KNOWN, KNOWN):
        tokens = text[first : first + KNOWN]
        theirs.forget()
        rows, ours = theirs.read(tokens), drover.logits(tokens)
        chosen = rows.argmax(axis=1)
        off = max(off, difference(ours, rows))
        same += int(same_choices(ours, chosen).sum())
        said.update(chosen.tolist())
        total += len(tokens)
    table.logits(f"{total:,} tokens of text, {KNOWN} at a time", off)
    found = f"{same:,} the same, {len(said):,} different ones"
    table.row("the greedy token behind each", found, "all", same == total)

    same = 0
    for question in QUESTIONS:
        prompt = chat(question)
        tokens = drover.tokens(prompt)
        answer, rows = theirs.greedy(tokens)
        while answer and drover_stops(theirs, answer[-1]):
            answer.pop()
        ours = drover.greedy(prompt, NEW_TOKENS)
        if ours == answer:
            same += 1
            continue
        # What is said after a tie is another answer.
        at = next((i for i, (a, b) in enumerate(zip(ours, answer)) if a != b), min(len(ours), len(answer)))
        row = drover.logits(tokens + ours[:at])[-1:]
        same += bool(same_choices(row, rows[at : at + 1].argmax(axis=1)).all())
    table.row("greedy answers to questions", f"{same} of {len(QUESTIONS)} the same", "all", same == len(QUESTIONS))
    table.row(
        f"texts beyond {KNOWN} tokens", "not comparable: it takes chunks of 8,192 whatever the file says", "", True
    )
    return table.good


def drover_stops(theirs, token):
    """An answer's end is no part of what `drover run` prints."""
    return theirs.api.llama_vocab_is_eog(theirs.vocab, token)


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ("transformers", "llama-cpp"):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        work, folder = Path(name), Path(sys.argv[3])
        if sys.argv[1] == "transformers":
            good = judge_transformers(Drover(sys.argv[2], folder, work), folder, work)
        else:
            good = judge_llama_cpp(Drover(sys.argv[2], folder, work, "--no-vision"), folder, work)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
