"""SmolLM2-135M-Instruct in every mixture: perplexity of Drover's files beside llama.cpp's.

    python compare_quantize.py MODEL FOLDER DROVER [MIXTURE ...]     prints Markdown

MODEL is unpacked to f32 once; that file is the source of both quantisers. For every mixture there
are two files, Drover's and llama.cpp's (llama_model_quantize, no importance matrix), and each is read
by both programs: so the quantisers are compared by one reader, and the readers on one file. Where
both hold the same weights, as in formats without a search, one file is read for both. The text is
tests/reference/harbour.txt in one window, no BOS, every token after the first scored.

The source lies on the grid of Q4_1. A type whose steps do not fall on that grid, Q5_1 for one, can
thus do worse than a smaller one that does: compare programs here, not types.

Files are written to FOLDER and removed again. script/compare-quantize runs this.

Exit status: 0 when Drover reads each of its own files with a perplexity within 0.5 % of what llama.cpp
reads from it, or better, and Drover's file is no worse than llama.cpp's by more than 0.5 %, both read
by Drover; 1 when not.
"""

import ctypes
import datetime
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from compare_llama_cpp import drover, drover_json, machine
from llama_cpp_judge import TEXT, LlamaCpp, log_likelihoods

TOLERANCE = 0.005
FILE_TYPES = {
    "q8_0": 7, "q6_k": 18, "q5_1": 9, "q5_k_m": 17, "q5_k_s": 16, "q5_0": 8, "q4_1": 3,
    "q4_k_m": 15, "q4_k_s": 14, "q4_0": 2, "iq4_nl": 25, "iq4_xs": 30, "q3_k_l": 13,
    "q3_k_m": 12, "q3_k_s": 11, "q2_k": 10,
}  # fmt: skip


kept = []  # llama.cpp goes on calling the log callback of a judge that is gone


def llama_perplexity(model: Path) -> float:
    judge = LlamaCpp(model, context=4096)
    kept.append(judge.quiet)
    text = judge.tokenize(TEXT.read_text(), special=False)
    parts = []
    for start in range(0, len(text), 512):
        piece = text[start : start + 512]
        targets = text[start + 1 : start + len(piece) + 1]
        parts.append(log_likelihoods(judge.read(piece)[: len(targets)], targets))
    judge.api.llama_batch_free(judge.batch)
    judge.api.llama_free(judge.handle)
    judge.api.llama_model_free(judge.model)
    return float(np.exp(-np.concatenate(parts).mean()))


def llama_quantize(source: Path, target: Path, file_type: int):
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, file_type
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp cannot quantise to {file_type}: {status}")


def same_weights(one: Path, other: Path) -> bool:
    """True where both quantisers have come to the same bytes, as in the formats without a search."""
    tensors = [{t.name: t for t in gguf.GGUFReader(path).tensors} for path in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(
        t.tensor_type == tensors[1][name].tensor_type and np.array_equal(t.data, tensors[1][name].data)
        for name, t in tensors[0].items()
    )


def main() -> int:
    import llama_cpp

    model, folder, binary = (Path(a) for a in sys.argv[1:4])
    folder.mkdir(parents=True, exist_ok=True)
    help_text = drover(binary, "quantize", "--help")
    offered = set(help_text.split("Types:")[1].split("A name")[0].replace(",", " ").split())
    mixtures = sys.argv[4:] or [m for m in FILE_TYPES if m in offered]

    def read(path):
        ours = drover_json(binary, "score", path, "--text", TEXT, "--json")["perplexity"]
        return ours, llama_perplexity(path)

    rows, passed = [], True
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, ours, theirs = (Path(name, f"{n}.gguf") for n in ("f32", "drover", "llama"))
        drover(binary, "quantize", model, source, "--type", "f32")
        base = read(source)
        for mixture in mixtures:
            drover(binary, "quantize", source, ours, "--type", mixture, "--force")
            llama_quantize(source, theirs, FILE_TYPES[mixture])
            a = read(ours)
            b = a if same_weights(ours, theirs) else read(theirs)
            readers, writers = a[0] / a[1] - 1, a[0] / b[0] - 1
            good = readers <= TOLERANCE and writers <= TOLERANCE
            passed &= good
            sizes = [path.stat().st_size / 1e6 for path in (ours, theirs)]
            rows.append((mixture, sizes, a, b, readers, writers, good))
            print(f"compare-quantize: {mixture} done", file=sys.stderr)

    print("# SmolLM2-135M-Instruct: Drover's quantisers against llama.cpp's\n")
    print(f"{'Passed' if passed else 'FAILED'}. {datetime.date.today()}, {machine()}.")
    print(f"{drover(binary, '--version').strip()}; llama-cpp-python {llama_cpp.__version__}.")
    print("Made by `script/compare-quantize`; what the words mean stands at the head of")
    print("`tests/reference/compare_quantize.py`.\n")
    print("Perplexity of `tests/reference/harbour.txt`. Source of both quantisers: the model's own")
    print(f"Q4_1 file unpacked to f32, which Drover reads with {base[0]:.4f} and llama.cpp with")
    print(f"{base[1]:.4f}. Readers: Drover against llama.cpp on Drover's file. Writers: Drover's file")
    print("against llama.cpp's, both read by Drover.\n")
    print("| mixture | MB, Drover's | MB, llama.cpp's | Drover's file by Drover | by llama.cpp "
          "| llama.cpp's file by Drover | by llama.cpp | readers | writers | |")  # fmt: skip
    print("| --- " * 10 + "|")
    for mixture, sizes, a, b, readers, writers, good in rows:
        print(
            f"| {mixture} | {sizes[0]:.1f} | {sizes[1]:.1f} | {a[0]:.4f} | {a[1]:.4f} | {b[0]:.4f} "
            f"| {b[1]:.4f} | {readers:+.2%} | {writers:+.2%} | {'' if good else 'worse'} |"
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
