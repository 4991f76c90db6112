"""Writes tests/data/formats/mixtures.json: which type llama.cpp gives each tensor of a model, for
every mixture and for models that its rules tell apart.

Run by hand, with what script/compare-llama-cpp installs:

    .cache/venv-llama-cpp/bin/python tests/reference/make_mixtures.py

The models are all zeros and two rows high: the rules look at names, widths and the configuration.
A part's types are given layer by layer, equal neighbours together: "q6_k*2 q4_k*10".
"""

import ctypes
import itertools
import json
import pathlib
import tempfile

import gguf
import llama_cpp
import numpy as np

MIXTURES = {
    "q8_0": 7, "q6_k": 18, "q5_1": 9, "q5_k_m": 17, "q5_k_s": 16, "q5_0": 8, "q4_1": 3,
    "q4_k_m": 15, "q4_k_s": 14, "q4_0": 2, "iq4_nl": 25, "iq4_xs": 30, "mxfp4_moe": 38,
    "q3_k_l": 13, "q3_k_m": 12, "q3_k_s": 11, "q2_k": 10, "q2_k_s": 21, "f16": 1, "bf16": 32,
}  # fmt: skip

# hidden: width of all rows but ffn_down's, which is `width`.
MODELS = [
    dict(name="grouped heads", architecture="llama", layers=32, heads=32, kv_heads=8, experts=0,
         tied=False, hidden=256, width=512),
    dict(name="odd widths, tied", architecture="llama", layers=30, heads=9, kv_heads=3, experts=0,
         tied=True, hidden=288, width=1536),
    dict(name="70B", architecture="llama", layers=80, heads=64, kv_heads=8, experts=0,
         tied=False, hidden=256, width=256),
    dict(name="16 experts", architecture="llama4", layers=48, heads=40, kv_heads=8, experts=16,
         tied=False, hidden=256, width=256),
    dict(name="8 experts", architecture="llama4", layers=12, heads=4, kv_heads=2, experts=8,
         tied=False, hidden=256, width=256),
    dict(name="four layers", architecture="llama4", layers=4, heads=8, kv_heads=2, experts=2,
         tied=True, hidden=256, width=160),
]  # fmt: skip


def shapes(model):
    """GGUF name -> row-major shape."""
    h, w, e = model["hidden"], model["width"], model["experts"]
    out = {"token_embd.weight": (2, h), "output_norm.weight": (h,)}
    if not model["tied"]:
        out["output.weight"] = (2, h)
    for i in range(model["layers"]):
        parts = {"attn_norm": (h,), "ffn_norm": (h,)}
        parts |= {f"attn_{x}": (2, h) for x in ("q", "k", "v", "output")}
        if e:
            parts |= {"ffn_gate_inp": (e, h), "ffn_gate_exps": (e, 2, h), "ffn_up_exps": (e, 2, h),
                      "ffn_down_exps": (e, 2, w), "ffn_gate_shexp": (2, h),
                      "ffn_up_shexp": (2, h), "ffn_down_shexp": (2, w)}  # fmt: skip
        else:
            parts |= {"ffn_gate": (2, h), "ffn_up": (2, h), "ffn_down": (2, w)}
        out |= {f"blk.{i}.{part}.weight": shape for part, shape in parts.items()}
    return out


def write(model, path):
    arch = model["architecture"]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {
        "block_count": model["layers"], "context_length": 64, "embedding_length": model["hidden"],
        "feed_forward_length": model["width"], "attention.head_count": model["heads"],
        "attention.head_count_kv": model["kv_heads"], "expert_count": model["experts"],
        "expert_used_count": min(1, model["experts"]), "vocab_size": 2,
        "interleave_moe_layer_step": 1, "expert_feed_forward_length": model["width"],
        "rope.dimension_count": 16, "attention.key_length": 16, "attention.value_length": 16,
    }.items():  # fmt: skip
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    for name, shape in shapes(model).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(model, source, target, ftype, guided):
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, ftype
    if guided:
        kept = [  # alive as long as the call
            (name.encode(), np.ones(shape[-1] * (shape[0] if len(shape) == 3 else 1), np.float32))
            for name, shape in shapes(model).items()
        ]
        array = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
        for entry, (name, ones) in zip(array, kept):
            entry.name, entry.size = name, ones.size
            entry.data = ones.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(array, type(params.imatrix))
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"{model['name']}, file type {ftype}: llama.cpp says {status}")


def types(path):
    """Part -> types of its layers, run-length encoded; parts of no layer by their whole name."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        name, kind = tensor.name.removesuffix(".weight"), tensor.tensor_type.name.lower()
        _, layer, part = name.split(".") if name.startswith("blk.") else ("", 0, name)
        found.setdefault(part, []).append((int(layer), kind))
    runs = lambda kinds: [(kind, len(list(group))) for kind, group in itertools.groupby(kinds)]
    return {
        part: " ".join(f"{kind}*{n}" for kind, n in runs(kind for _, kind in sorted(layers)))
        for part, layers in sorted(found.items())
        if layers[0][1] != "f32"
    }


def main():
    out = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "source.gguf"), pathlib.Path(folder, "target.gguf")
        for model in MODELS:
            write(model, source)
            mixtures = []
            for (name, ftype), guided in itertools.product(MIXTURES.items(), (False, True)):
                if name == "q2_k_s" and not guided:
                    continue  # llama.cpp refuses
                quantize(model, source, target, ftype, guided)
                found = types(target)
                if guided and mixtures[-1]["mixture"] == name and mixtures[-1]["types"] == found:
                    mixtures[-1]["importance"] = [False, True]  # makes no difference
                    continue
                entry = {"mixture": name, "file_type": ftype, "importance": [guided]}
                mixtures.append(entry | {"types": found})
            out.append(model | {"mixtures": mixtures})
    text = json.dumps(out, separators=(",", ":")).replace('{"mixture"', '\n{"mixture"').replace('{"name"', '\n\n{"name"')
    pathlib.Path("tests/data/formats/mixtures.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
