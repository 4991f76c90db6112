"""The Llama 4 text model on one page, in float64, with nothing but numpy.

A second judge beside transformers: written from the equations alone, sharing no code with it or with
Drover. It reads a Hugging Face folder (config.json in the older or the newer spelling, f32, f16 or
bf16 safetensors, one file or shards) of the architectures `llama4`, `llama4_text` and `llama`, and
computes the logits of a whole prompt. Slow on purpose: no cache, no batching, one loop per layer.

    python llama4_numpy.py FOLDER...    compares each folder's logits.npy with this model;
                                        exit status 1 if one differs by more than 1e-5 of the
                                        largest logit.

Letters: T tokens, D hidden, H query heads, K key/value heads, d head size, E experts, F expert inner
size, V vocabulary.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Config:
    """What the equations need; the lists have one entry per layer."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float
    rope_scaling: (
        dict | None
    )  # llama3 type: factor, low_freq_factor, high_freq_factor, original_...
    half_split: bool  # pairs are (k, k + d/2) as Hugging Face's `llama` has it, else (2k, 2k+1)
    rope: list[bool]
    chunked: list[bool]
    moe: list[bool]
    chunk: int | None
    qk_norm: bool
    temperature: bool
    floor_scale: float
    attn_scale: float
    top_k: int

    @staticmethod
    def read(path: Path) -> "Config":
        raw = json.loads(path.read_text())
        text = raw.get("text_config", raw)
        llama4 = text["model_type"] in ("llama4", "llama4_text")
        if not llama4 and text["model_type"] != "llama":
            raise ValueError(f"{path}: model_type {text['model_type']}")
        layers, heads = text["num_hidden_layers"], text["num_attention_heads"]

        newer = text.get("rope_parameters") or {}
        scaling = newer or text.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"{path}: rope type {kind}")
        theta = newer.get("rope_theta", text.get("rope_theta"))

        interval = text.get("no_rope_layer_interval", 4)
        rope = text.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(layers)]
        chunk = text.get("attention_chunk_size", 8192) if llama4 else None
        types = text.get("layer_types") or [
            "chunked_attention" if r else "full_attention" for r in rope
        ]
        step = text.get("interleave_moe_layer_step", 1)
        moe = text.get("moe_layers")
        if moe is None:
            moe = [i for i in range(layers) if step and (i + 1) % step == 0]

        return Config(
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            eps=text["rms_norm_eps"],
            rope_theta=theta or (500000.0 if llama4 else 10000.0),
            rope_scaling=scaling if kind == "llama3" else None,
            half_split=not llama4,
            rope=[bool(r) for r in rope] if llama4 else [True] * layers,
            chunked=[llama4 and chunk is not None and t == "chunked_attention" for t in types],
            moe=[llama4 and i in moe for i in range(layers)],
            chunk=chunk,
            qk_norm=llama4 and text.get("use_qk_norm", True),
            temperature=llama4 and bool(text.get("attn_temperature_tuning", True)),
            floor_scale=text.get("floor_scale", 8192),
            attn_scale=text.get("attn_scale", 0.1),
            top_k=text.get("num_experts_per_tok", 1),
        )


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All text tensors of the folder in float64, names without `language_model.` and `model.`."""
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = data[start + begin : start + end]
            if entry["dtype"] == "BF16":  # the upper half of a float32
                values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
            else:
                values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
            name = name.removeprefix("language_model.").removeprefix("model.")
            name = name.replace(".mlp.", ".feed_forward.")  # as `llama` calls it
            weights[name] = values.reshape(entry["shape"]).astype(np.float64)
    return weights


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x, eps, weight=1.0):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rope_frequencies(c: Config) -> np.ndarray:
    """Radians per position of each of the d/2 pairs."""
    f = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
    if not c.rope_scaling:
        return f
    s = c.rope_scaling
    factor, low, high = s["factor"], s["low_freq_factor"], s["high_freq_factor"]
    context = s["original_max_position_embeddings"]
    scaled = f.copy()
    for k, wavelength in enumerate(2 * np.pi / f):
        if wavelength > context / low:
            scaled[k] = f[k] / factor
        elif wavelength >= context / high and low != high:  # Scout has low = high: a plain step
            t = (context / wavelength - low) / (high - low)
            scaled[k] = (1 - t) * f[k] / factor + t * f[k]
    return scaled


class Model:
    """One method per mechanism, so that a test can replace one and see that it matters."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray]):
        self.c, self.w = config, weights
        self.router_margin = np.inf  # smallest lead of a chosen expert over a passed one, in logits

    def logits(self, tokens) -> np.ndarray:
        """tokens: T ids. Returns [T, V]."""
        c, w = self.c, self.w
        positions = np.arange(len(tokens))
        h = w["embed_tokens.weight"][tokens]
        for i in range(len(c.rope)):
            self.prefix = f"layers.{i}."
            a = rms_norm(h, c.eps, self.weight("input_layernorm.weight"))
            h = h + self.attention(a, i, positions)
            f = rms_norm(h, c.eps, self.weight("post_attention_layernorm.weight"))
            if c.moe[i]:
                h = h + self.mlp(f, "feed_forward.shared_expert.") + self.experts(f)
            else:
                h = h + self.mlp(f, "feed_forward.")
        h = rms_norm(h, c.eps, w["norm.weight"])
        return h @ w.get("lm_head.weight", w["embed_tokens.weight"]).T

    def weight(self, name):
        return self.w[self.prefix + name]

    # Attention: a [T, D] -> [T, D].

    def attention(self, a, i, positions):
        c, T = self.c, len(a)
        q = (a @ self.weight("self_attn.q_proj.weight").T).reshape(T, c.heads, c.head_dim)
        k = (a @ self.weight("self_attn.k_proj.weight").T).reshape(T, c.kv_heads, c.head_dim)
        v = (a @ self.weight("self_attn.v_proj.weight").T).reshape(T, c.kv_heads, c.head_dim)
        q, k = self.position(q, k, i, positions)
        q, k, v = (x.transpose(1, 0, 2) for x in (q, self.share(k), self.share(v)))  # [H, T, d]
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(c.head_dim)
        scores = np.where(self.allowed(i, positions[:, None], positions[None, :]), scores, -np.inf)
        out = softmax(scores) @ v
        return out.transpose(1, 0, 2).reshape(T, -1) @ self.weight("self_attn.o_proj.weight").T

    def position(self, q, k, i, positions):
        c = self.c
        if c.rope[i]:
            angles = positions[:, None] * rope_frequencies(c)
            q, k = self.rotate(q, angles), self.rotate(k, angles)
            if c.qk_norm:
                q, k = rms_norm(q, c.eps), rms_norm(k, c.eps)
        elif c.temperature:
            q = q * self.temperature(positions)[:, None, None]
        return q, k

    def rotate(self, x, angles):
        """x [T, heads, d], angles [T, d/2]: every pair of components turns by its angle."""
        d = x.shape[-1]
        one, two = (
            (slice(0, d // 2), slice(d // 2, d))
            if self.c.half_split
            else (slice(0, d, 2), slice(1, d, 2))
        )
        cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
        out = np.empty_like(x)
        out[..., one] = x[..., one] * cos - x[..., two] * sin
        out[..., two] = x[..., one] * sin + x[..., two] * cos
        return out

    def temperature(self, positions):
        return 1 + self.c.attn_scale * np.log(1 + np.floor((positions + 1) / self.c.floor_scale))

    def share(self, x):
        """[T, K, d] -> [T, H, d]: query head j reads key/value head floor(j / (H/K))."""
        return np.repeat(x, self.c.heads // self.c.kv_heads, axis=1)

    def allowed(self, i, query, key):
        causal = key <= query
        return (
            causal & (key // self.c.chunk == query // self.c.chunk) if self.c.chunked[i] else causal
        )

    # Feed-forward: x [T, D] -> [T, D].

    def mlp(self, x, name):
        gate, up, down = (
            self.weight(f"{name}{part}_proj.weight") for part in ("gate", "up", "down")
        )
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    def experts(self, x):
        routed = np.zeros_like(x)
        logits = x @ self.weight("feed_forward.router.weight").T
        for t, l in enumerate(logits):
            order = np.argsort(-l, kind="stable")  # equal logits: the lowest index first
            chosen = order[: self.c.top_k]
            if self.c.top_k < len(l):
                self.router_margin = min(self.router_margin, l[chosen[-1]] - l[order[self.c.top_k]])
            for e, g in zip(chosen, self.gates(l, chosen)):
                routed[t] += self.expert(x[t], e, g)
        return routed

    def gates(self, logits, chosen):
        return sigmoid(logits[chosen])

    def expert(self, x, e, g):
        """The gate scales the expert's INPUT; the experts' matrices are stored [in, out]."""
        return self.swiglu(g * x, e)

    def swiglu(self, x, e):
        gate, up = np.split(x @ self.weight("feed_forward.experts.gate_up_proj")[e], 2)
        return (silu(gate) * up) @ self.weight("feed_forward.experts.down_proj")[e]


def load(folder: Path, config_name: str = "config.json") -> Model:
    return Model(Config.read(folder / config_name), read_weights(folder))


def relative_difference(a, b) -> float:
    """max |a - b| over max |b|: the measure of all golden comparisons."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def main() -> int:
    worst = 0.0
    for folder in map(Path, sys.argv[1:]):
        tokens = json.loads((folder / "tokens.json").read_text())
        golden = np.load(folder / "logits.npy").astype(np.float64)
        for name in ("config.json", "config.older.json"):
            if (folder / name).exists():
                difference = relative_difference(load(folder, name).logits(tokens), golden)
                worst = max(worst, difference)
                print(f"{folder.name:24} {name:18} {difference:.1e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
