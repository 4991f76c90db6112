"""Holds `drover quantize` and `score --importance` against Python: gguf and float64 mathematics.

    python quantize_judge.py DROVER

- Every mixture of two small random models: the file kind is the one that the gguf package knows by
  that name, and what the package reads from every tensor are the floats that Drover reads.
- Importance files of tiny checkpoints: sums of squares and counts of the inputs of every matrix, by
  llama4_numpy in float64 on the same tokens, within 1e-4 of a matrix's largest (as for logits).
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

import llama4_numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cli"))
from harness import copy_golden  # noqa: E402

# File kinds by the gguf package, where the name is not MOSTLY_ and the mixture in capitals.
FILE_TYPES = {"f32": "ALL_F32", "mxfp4": "MOSTLY_MXFP4_MOE"}
# Drover's names of what llama4_numpy multiplies with.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "feed_forward.router": "ffn_gate_inp",
}  # fmt: skip
for part in ("gate", "up", "down"):
    NAMES[f"feed_forward.{part}_proj"] = f"ffn_{part}"
    NAMES[f"feed_forward.shared_expert.{part}_proj"] = f"ffn_{part}_shexp"
TEXT = "the ship came into the harbour at noon, and nobody was there to see it; " * 6

drover = sys.argv[1]


def run(*arguments) -> str:
    done = subprocess.run([drover, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: exits {done.returncode}: {done.stderr}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------
# Types.


def random_folder(folder: Path, moe: bool, layers: int = 2) -> Path:
    """A llama4 with experts or a llama, rows of 256."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    config = {
        "vocab_size": 64, "hidden_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    if moe:
        config |= {"model_type": "llama4_text", "intermediate_size_mlp": 512,
                   "num_local_experts": 4, "moe_layers": list(range(layers))}  # fmt: skip
    else:
        config |= {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {}

    def add(name, *shape):
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        offset = 0 if len(shape) > 1 else 1
        weights[name] = (offset + scale * rng.standard_normal(shape)).astype(np.float32)

    add("model.embed_tokens.weight", 64, 256)
    add("model.norm.weight", 256)
    add("lm_head.weight", 64, 256)
    for i in range(layers):
        layer = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            add(f"{layer}{norm}.weight", 256)
        for name, rows in (("q", 256), ("k", 128), ("v", 128), ("o", 256)):
            add(f"{layer}self_attn.{name}_proj.weight", rows, 256)
        network = "feed_forward.shared_expert." if moe else "mlp."
        add(f"{layer}{network}gate_proj.weight", 512, 256)
        add(f"{layer}{network}up_proj.weight", 512, 256)
        add(f"{layer}{network}down_proj.weight", 256, 512)
        if moe:
            add(f"{layer}feed_forward.router.weight", 4, 256)
            add(f"{layer}feed_forward.experts.gate_up_proj", 4, 256, 1024)
            add(f"{layer}feed_forward.experts.down_proj", 4, 512, 256)
    save_file(weights, folder / "model.safetensors")
    return folder


def all_mixtures() -> list[str]:
    """What Drover offers, in its own words."""
    said = subprocess.run([drover, "quantize", "a", "b", "--type", "?"], capture_output=True)
    names = re.search(r"type: expected (.*), got", said.stderr.decode()).group(1).split(", ")
    assert {"f32", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"} <= set(names), names
    return names


def check_types(folder: Path) -> str:
    compared, mixtures = 0, all_mixtures()
    for moe in (False, True):
        source = random_folder(folder / f"moe_{moe}", moe)
        for mixture in mixtures:
            path, wide = folder / "a.gguf", folder / "b.gguf"
            run("quantize", source, path, "--type", mixture, "--force")
            run("quantize", path, wide, "--type", "f32", "--force")
            reader = gguf.GGUFReader(path)
            kind = FILE_TYPES.get(mixture, f"MOSTLY_{mixture.upper()}")
            file_type = reader.fields["general.file_type"].contents()
            assert file_type == gguf.LlamaFileType[kind].value, (mixture, file_type)
            if mixture not in ("f32", "f16", "bf16"):
                assert reader.fields["general.quantization_version"].contents() == 2, mixture
            wider = {t.name: t for t in gguf.GGUFReader(wide).tensors}
            for tensor in reader.tensors:
                theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
                ours = wider[tensor.name].data
                assert ours.dtype == np.float32 and theirs.shape == ours.shape, tensor.name
                assert np.array_equal(theirs, ours), (mixture, tensor.name)
                compared += 1
    return f"{compared} tensors of {len(mixtures)} mixtures: 0 differences"


# ---------------------------------------------------------------------------------------------------
# Importance.


class Seen:
    """A matrix, or the experts' [E, in, out], that notes what it is multiplied with."""

    __array_ufunc__ = None  # so that x @ self comes here

    def __init__(self, model, name, matrix, expert=None):
        self.model, self.name, self.matrix, self.expert = model, name, matrix, expert

    @property
    def T(self):
        return Seen(self.model, self.name, self.matrix.T)

    def __getitem__(self, expert):
        return Seen(self.model, self.name, self.matrix[expert], expert)

    def __rmatmul__(self, x):
        rows = np.atleast_2d(x)
        sums, counts = self.model.seen.setdefault(self.name, ({}, {}))
        sums[self.expert] = sums.get(self.expert, 0) + (rows**2).sum(axis=0)
        counts[self.expert] = counts.get(self.expert, 0) + len(rows)
        return x @ self.matrix


class Observed(llama4_numpy.Model):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = {}  # name in the checkpoint -> ({expert: sums}, {expert: counts})

    def weight(self, name):
        matrix = super().weight(name)
        return matrix if matrix.ndim == 1 else Seen(self, self.prefix + name, matrix)


def gguf_names(name: str) -> list[str]:
    """layers.N.NAME of the checkpoint -> the tensors that hold it."""
    _, layer, part = name.split(".", 2)
    if part.endswith("experts.gate_up_proj"):
        parts = ["ffn_gate_exps", "ffn_up_exps"]
    elif part.endswith("experts.down_proj"):
        parts = ["ffn_down_exps"]
    else:
        parts = [NAMES[part.removesuffix(".weight")]]
    return [f"blk.{layer}.{p}.weight" for p in parts]


def check_importance(folder: Path, golden: str) -> int:
    model = copy_golden(golden, folder / golden)
    (folder / "text").write_text(TEXT)
    tokens = [int(word) for word in run("tokenize", model, TEXT).split()]
    path = folder / "importance.gguf"
    said = json.loads(
        run("score", model, "--text", folder / "text", "--importance", path, "--json")
    )
    assert said["tokens"] == len(tokens) - 1, "one window"
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    keys = {key: reader.fields[key].contents() for key in reader.fields}
    assert keys["general.type"] == "imatrix" and keys["imatrix.chunk_count"] == 1
    assert keys["imatrix.datasets"] == [str(folder / "text")]
    assert keys["imatrix.chunk_size"] == said["context"]

    plain = llama4_numpy.load(model)
    exact = Observed(plain.c, {k: v.astype(np.float64) for k, v in plain.w.items()})
    exact.logits(tokens)
    compared = set()
    for name, (sums, counts) in exact.seen.items():
        for tensor in gguf_names(name):
            in_sum2, count = found[f"{tensor}.in_sum2"], found[f"{tensor}.counts"]
            assert in_sum2.ndim == 2 and count.shape == (len(in_sum2), 1), tensor
            experts = list(sums) if None not in sums else [None]
            assert count.sum() == sum(counts.values()), tensor
            for e in experts:
                row = 0 if e is None else e
                assert count[row, 0] == counts[e], (golden, tensor, e)
                off = np.abs(in_sum2[row] - sums[e]).max() / sums[e].max()
                assert off <= 1e-4, (golden, tensor, e, off)
            compared.add(tensor)
    rest = {name.rsplit(".", 1)[0] for name in found} - compared
    assert rest <= {"output.weight", "token_embd.weight"}, rest
    return len(compared)


def main():
    with tempfile.TemporaryDirectory() as name:
        print(check_types(Path(name)))
        for golden in ("scout", "maverick", "top_2", "no_chunks", "tied"):
            print(f"importance of {golden}: {check_importance(Path(name), golden)} matrices agree")


if __name__ == "__main__":
    main()
