"""Writes the golden checkpoints: tiny random models and the logits that transformers gives for them.

    python make_goldens.py [--out tests/data/goldens] [--only NAME]

Each case becomes a folder as `save_pretrained` writes it, plus

    tokens.json         the prompt, a list of ids
    logits.npy          float32 [tokens, vocab]: eval mode, float32, eager attention, whole prompt
    config.older.json   the same model in the older spelling of config.json, where the case has one
    logits_bf16.npy     where weights are bfloat16: all of it run in bfloat16, to show what that costs

and an entry in goldens.json with the figures behind three demands, any of which stops this script:

* the float64 model of llama4_numpy.py agrees to 1e-5 of the largest logit, and so does transformers
  with its other attention (sdpa);
* every mechanism matters: with one mechanism changed (chunks off, gate on the expert's output, ...)
  the logits move by more than 1e-2 of the largest, a hundred times the tolerance of Drover's test;
* no expert is chosen by a hair: the prompt is the one, out of 200, whose closest choice of an expert
  is the clearest, so that rounding cannot send a token elsewhere.

Weights and prompts come from numpy's generator and a fixed seed per case, so a new version of torch
does not change them.
"""

import argparse
import json
import shutil
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import llama4_numpy
from golden_cases import CASES, LLAMA, SCOUT, VISION
from llama4_numpy import Config, Model, relative_difference, rms_norm, silu, softmax

AGREEMENT = 1e-5  # float32 against float64: measured below 4e-6; a tenth of the test's tolerance
SENSITIVITY = 1e-2
PROMPTS_TRIED = 200

# ---------------------------------------------------------------------------------------------------
# Building and saving.


def build(case):
    """The model of a case, not yet filled, in float32."""
    if case.get("llama"):
        return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **case["config"]}))
    text = {**SCOUT, **case["config"]}
    if case.get("multimodal"):
        config = Llama4Config(
            text_config=text,
            vision_config=VISION,
            boi_token_index=60,
            eoi_token_index=61,
            image_token_index=62,
        )
        return Llama4ForConditionalGeneration(config)
    return Llama4ForCausalLM(Llama4TextConfig(**text))


@torch.no_grad()
def fill(model, rng, dtype):
    """Random weights large enough that every layer bends its input, in values that `dtype` can hold.

    The usual initial 0.02 would leave the residual stream nearly untouched: a wrong layer would pass.
    """
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if name.endswith(("embed_tokens.weight", "class_embedding", "positional_embedding_vlm")):
            value = rng.standard_normal(shape)
        elif len(shape) == 1:  # norms, and biases of the vision tower
            value = (0.0 if name.endswith("bias") else 1.0) + 0.3 * rng.standard_normal(shape)
        else:
            fan_in = shape[-2] if "experts." in name and "shared" not in name else shape[-1]
            gain = 2.5 if "router" in name else 1.2
            value = rng.standard_normal(shape) * gain / np.sqrt(fan_in)
        p.copy_(torch.from_numpy(value.astype(np.float32)).to(dtype).to(torch.float32))
    model.tie_weights()


def text_model(model):
    """The part of a multimodal model that a prompt without images goes through, else the model.

    The multimodal class of transformers 5.24.0 cannot be called itself: it asks its text model's
    output for `image_outputs`, which is not there. (5.23.0 can, but fails on attention_chunk_size
    null, so every version has its case.)
    """
    return getattr(model, "language_model", model).eval()


@torch.no_grad()
def run(model, tokens):
    model = text_model(model)
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


@torch.no_grad()
def run_token_by_token(model, tokens):
    """Decoding with transformers' own cache: reported, not judged by."""
    model, rows, state = text_model(model), [], {}
    for t in tokens:
        out = model(input_ids=torch.tensor([[t]]), use_cache=True, **state)
        key = "cache" if "cache" in out else "past_key_values"
        state = {key: out[key]}
        rows.append(out.logits[0, -1].float().numpy())
    return np.stack(rows)


def older_spelling(config: dict, changes: dict) -> dict:
    """What transformers 4.51 wrote for the same model."""
    changes = dict(changes)
    drop, keep_moe = changes.pop("drop", []), changes.pop("keep_moe_layers", False)
    top = dict(config)
    text = dict(top.get("text_config", top))
    rope = dict(text.pop("rope_parameters"))
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    text.pop("layer_types", None)
    if text["model_type"] == "llama4_text":
        text["for_llm_compressor"] = False
        if not keep_moe and text["interleave_moe_layer_step"]:
            text.pop("moe_layers", None)
    for name in drop:
        text.pop(name)
    text.update(changes)
    for part in (text, top):
        if "dtype" in part:
            part["torch_dtype"] = part.pop("dtype")
        part["transformers_version"] = "4.51.0"
    if "text_config" in top:
        vision = dict(top["vision_config"])
        vision["rope_theta"] = vision.pop("rope_parameters")["rope_theta"]
        top["text_config"], top["vision_config"] = text, vision
        return top
    return {**text, "transformers_version": "4.51.0"}


def read_older(model, folder: Path):
    """config.older.json as transformers reads it, which by now refuses the 4 that it once wrote."""
    raw = json.loads((folder / "config.older.json").read_text())
    text = raw.get("text_config", raw)
    if "attn_temperature_tuning" in text:
        text["attn_temperature_tuning"] = bool(text["attn_temperature_tuning"])
    return type(model.config).from_dict(raw)


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------
# Mechanisms, changed one at a time. Each entry: which cases it concerns, and the changed model.


def with_config(**changes):
    return lambda c, w: Model(
        replace(c, **{k: v(c) if callable(v) else v for k, v in changes.items()}), w
    )


def with_method(name, method):
    return lambda c, w: type("Changed", (Model,), {name: method})(c, w)


def window_instead_of_chunk(self, i, query, key):
    near = query - key < self.c.chunk if self.c.chunked[i] else True
    return (key <= query) & near


def chunk_borders_one_late(self, i, query, key):
    same = (key - 1) // self.c.chunk == (query - 1) // self.c.chunk if self.c.chunked[i] else True
    return (key <= query) & same


def norm_everywhere(self, q, k, i, positions):
    q, k = Model.position(self, q, k, i, positions)
    return (q, k) if self.c.rope[i] else (rms_norm(q, self.c.eps), rms_norm(k, self.c.eps))


def temperature_everywhere(self, q, k, i, positions):
    q, k = Model.position(self, q, k, i, positions)
    return (q * self.temperature(positions)[:, None, None] if self.c.rope[i] else q), k


def temperature_one_late(self, positions):
    return Model.temperature(self, positions - 1)


def swapped_experts_halves(self, x, e):
    up, gate = np.split(x @ self.weight("feed_forward.experts.gate_up_proj")[e], 2)
    return (silu(gate) * up) @ self.weight("feed_forward.experts.down_proj")[e]


def no_shared_expert(self, x, name):
    return np.zeros_like(x) if "shared" in name else Model.mlp(self, x, name)


def changes_for(c: Config, tokens: int):
    """(name, maker) of every changed model that must differ from this one."""
    routed, chunks = any(c.moe), any(c.chunked) and tokens > c.chunk
    nope, scaled_q = not all(c.rope), not all(c.rope) and c.temperature and tokens >= c.floor_scale
    table = [
        (chunks, "no chunks", with_config(chunked=lambda c: [False] * len(c.rope))),
        (chunks, "window for chunk", with_method("allowed", window_instead_of_chunk)),
        (chunks, "chunk borders one late", with_method("allowed", chunk_borders_one_late)),
        (scaled_q, "no temperature", with_config(temperature=False)),
        (scaled_q, "temperature one late", with_method("temperature", temperature_one_late)),
        (
            scaled_q and any(c.rope),
            "temperature on RoPE layers",
            with_method("position", temperature_everywhere),
        ),
        (nope, "RoPE on NoPE layers", with_config(rope=lambda c: [True] * len(c.rope))),
        (
            not c.half_split and any(c.rope),
            "qk-norm on/off",
            with_config(qk_norm=lambda c: not c.qk_norm),
        ),
        (c.qk_norm and nope, "qk-norm on NoPE layers", with_method("position", norm_everywhere)),
        (c.rope_scaling, "no rope scaling", with_config(rope_scaling=None)),
        (any(c.rope), "rope pairing", with_config(half_split=lambda c: not c.half_split)),
        (any(c.rope), "another theta", with_config(rope_theta=1e4 if c.rope_theta > 1e4 else 5e5)),
        (c.eps > 1e-3, "eps 1e-5", with_config(eps=1e-5)),
        (
            routed,
            "gate on output",
            with_method("expert", lambda self, x, e, g: g * self.swiglu(x, e)),
        ),
        (routed, "softmax gates", with_method("gates", lambda self, l, chosen: softmax(l)[chosen])),
        (routed, "one more expert", with_config(top_k=lambda c: c.top_k + 1)),
        (routed and c.top_k > 1, "top-1", with_config(top_k=1)),
        (routed, "gate and up exchanged", with_method("swiglu", swapped_experts_halves)),
        (routed, "no shared expert", with_method("mlp", no_shared_expert)),
        (
            1 < c.kv_heads < c.heads,
            "heads share in turn",
            with_method(
                "share", lambda self, x: np.tile(x, (1, self.c.heads // self.c.kv_heads, 1))
            ),
        ),
    ]
    return [(name, maker) for concerns, name, maker in table if concerns]


# ---------------------------------------------------------------------------------------------------


def choose_prompt(model, rng, length, vocab):
    """Returns the prompt with the clearest choices of experts, and its margin in router logits."""
    best, best_margin = None, -1.0
    for _ in range(PROMPTS_TRIED if any(model.c.moe) else 1):
        # Ids from 4 on, and no image token: the first ones are the special tokens.
        tokens = [1] + [int(t) for t in rng.integers(4, vocab - 4, length - 1)]
        model.router_margin = np.inf
        model.logits(tokens)
        if model.router_margin > best_margin:
            best, best_margin = tokens, model.router_margin
    return best, best_margin


def make(name, case, out: Path) -> dict:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    dtype = case.get("dtype", torch.float32)
    model = build(case)
    fill(model, rng, dtype)

    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config.update(
        do_sample=True, temperature=0.6, top_p=0.9
    )  # as the releases say
    model.to(dtype).save_pretrained(folder, **case.get("save", {}))
    for path in folder.iterdir():
        path.chmod(0o644)

    # What is judged is what the folder says. (Never `model.to(float32)` after `model.to(bfloat16)`:
    # that rounds the rope frequencies, which are no weights and do not come back.)
    def reload(dtype, attention, **more):
        more.update(dtype=dtype, attn_implementation=attention)
        return type(model).from_pretrained(folder, **more)

    model = reload(torch.float32, "eager")
    saved = json.loads((folder / "config.json").read_text())
    if "older" in case:
        write_json(folder / "config.older.json", older_spelling(saved, case["older"]))

    ours = llama4_numpy.load(folder)
    tokens, margin = choose_prompt(
        ours, rng, case["tokens"], saved.get("text_config", saved)["vocab_size"]
    )
    golden = run(model, tokens)
    exact = ours.logits(tokens)
    write_json(folder / "tokens.json", tokens)
    np.save(folder / "logits.npy", golden)

    figures = {
        "name": name,
        "what": case["what"],
        "tokens": len(tokens),
        "largest_logit": float(f"{np.abs(golden).max():.4g}"),
        "numpy_difference": float(f"{relative_difference(golden, exact):.1e}"),
    }
    assert relative_difference(golden, exact) < AGREEMENT, (
        name,
        "numpy",
        relative_difference(golden, exact),
    )
    if "older" in case:
        older = llama4_numpy.load(folder, "config.older.json").logits(tokens)
        assert np.array_equal(older, exact), (name, "the older spelling means another model")
        theirs = run(reload(torch.float32, "eager", config=read_older(model, folder)), tokens)
        assert np.array_equal(theirs, golden), (name, "transformers reads another model")

    sdpa = run(reload(torch.float32, "sdpa"), tokens)
    figures["sdpa_difference"] = float(f"{relative_difference(sdpa, golden):.1e}")
    assert figures["sdpa_difference"] < AGREEMENT, (name, "sdpa", figures["sdpa_difference"])

    stepwise = run_token_by_token(model, tokens)
    figures["transformers_decode_difference"] = float(
        f"{relative_difference(stepwise, golden):.1e}"
    )
    if dtype == torch.bfloat16:
        low = run(reload(torch.bfloat16, "eager"), tokens)
        np.save(folder / "logits_bf16.npy", low)
        figures["bf16_difference"] = float(f"{relative_difference(low, golden):.1e}")

    if np.isfinite(margin):
        figures["router_margin"] = float(f"{margin:.1e}")
        assert margin > 1e-3, (name, "an expert is chosen by a hair", margin)
    figures["change_matters"] = {}
    for change, maker in changes_for(ours.c, len(tokens)):
        moved = relative_difference(maker(ours.c, ours.w).logits(tokens), exact)
        figures["change_matters"][change] = float(f"{moved:.2g}")
        assert moved > SENSITIVITY, (name, change, moved)
    print(
        f"{name:18} numpy {figures['numpy_difference']:.0e}  decode {figures['transformers_decode_difference']:.0e}"
        f"  margin {margin:.3f}  weakest change {min(figures['change_matters'].items(), key=lambda x: x[1])}"
    )
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=root / "tests" / "data" / "goldens")
    parser.add_argument("--only", help="make one case and leave goldens.json alone")
    args = parser.parse_args()

    torch.set_num_threads(1)  # one order of summation, so the files come out the same everywhere
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")

    args.out.mkdir(parents=True, exist_ok=True)
    cases = {args.only: CASES[args.only]} if args.only else CASES
    made = [make(name, case, args.out) for name, case in cases.items()]
    if not args.only:
        versions = {
            "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0],
        }
        write_json(args.out / "goldens.json", {"made_with": versions, "cases": made})


if __name__ == "__main__":
    main()
