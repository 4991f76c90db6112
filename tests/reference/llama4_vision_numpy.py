"""The Llama 4 vision encoder on one page, in float64, with nothing but numpy.

The eyes of `llama4_numpy.py`: written from the equations, sharing no code with transformers or with
Drover. It reads the vision part of a Hugging Face folder, computes the features of all tiles of a
prompt, and hands them to the text model of the other page as if each were one more word.

    python llama4_vision_numpy.py FOLDER...    compares each folder's features.npy and logits.npy with
                                               this model, and layer.npy of the folder that has no
                                               weights; exit status 1 if one differs by more than
                                               1e-5 of the largest value.

Letters: N tiles, P pixels per side of a tile, p pixels per side of a patch, g = P/p patches per side,
n = g*g patches, C hidden, H heads, d head size, F inner size of the adapter's output, D text hidden.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import llama4_numpy
import vision_cases
from llama4_numpy import TOLERANCE, relative_difference, softmax


@dataclass(frozen=True)
class VisionConfig:
    image_size: int
    patch_size: int
    layers: int
    heads: int
    rope_theta: float
    eps: float = 1e-5  # of every LayerNorm, whatever norm_eps says

    @staticmethod
    def of(raw: dict) -> "VisionConfig":
        rope = raw.get("rope_parameters") or {}
        return VisionConfig(
            image_size=raw["image_size"],
            patch_size=raw["patch_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
        )

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // 2) ** 2


erf = np.frompyfunc(math.erf, 1, 1)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)).astype(np.float64))


class Encoder:
    """Tiles to features. One method per mechanism, so that a test can replace one."""

    def __init__(self, config: VisionConfig, weights: dict[str, np.ndarray]):
        self.c, self.w = config, weights

    def features(self, tiles) -> np.ndarray:
        """tiles: [N, P, P, 3] bytes. Returns [N * tokens_per_tile, D]."""
        s = self.pixel_shuffle(self.encode(tiles))
        return self.project(self.adapt(s)).reshape(-1, self.w[PROJECTOR].shape[0])

    def encode(self, tiles):
        """[N, P, P, 3] -> [N, n, C]."""
        h = self.patches(self.normalise(tiles)) @ self.w["patch_embedding.linear.weight"].T
        h = self.with_class(h) + self.w["positional_embedding_vlm"]
        h = self.layer_norm(h, "layernorm_pre")
        for i in range(self.c.layers):
            h = self.layer(h, f"model.layers.{i}.")
        return self.without_class(self.layer_norm(h, "layernorm_post"))

    def layer(self, h, name):
        h = h + self.attention(self.layer_norm(h, name + "input_layernorm"), name + "self_attn.")
        return h + self.mlp(self.layer_norm(h, name + "post_attention_layernorm"), name + "mlp.")

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def layer_norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.eps(name))
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def eps(self, name):
        return self.c.eps

    # From bytes to tokens.

    def normalise(self, tiles):
        return (tiles / 255 - 0.5) / 0.5

    def patches(self, x):
        """[N, P, P, 3] -> [N, n, 3*p*p]: patches row by row; in a patch colour, then y, then x."""
        N, g, p = len(x), self.c.grid, self.c.patch_size
        x = x[:, : g * p, : g * p].reshape(N, g, p, g, p, 3)
        return x.transpose(0, 1, 3, *self.inside_patch).reshape(N, g * g, 3 * p * p)

    inside_patch = (5, 2, 4)

    def with_class(self, h):
        row = np.broadcast_to(self.w["class_embedding"], (len(h), 1, h.shape[-1]))
        return np.concatenate([h, row], axis=1)

    def without_class(self, h):
        return h[:, :-1]

    # Attention: every token of a tile sees every token of that tile. a [N, n+1, C].

    def attention(self, a, name):
        q, k, v = (self.linear(a, f"{name}{x}_proj") for x in "qkv")
        q, k, v = (x.reshape(*x.shape[:2], self.c.heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
        q, k = self.rotate(q), self.rotate(k)
        out = softmax(self.scores(q, k)) @ v
        return self.linear(out.transpose(0, 2, 1, 3).reshape(a.shape), name + "o_proj")

    def scores(self, q, k):
        return q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])

    def angles(self, d):
        """[n+1, d/2] radians: a quarter of d turns by x, the next by y, the class token not at all."""
        f = self.c.rope_theta ** (-np.arange(0, d // 2, 2) / (d // 2))
        y, x = np.divmod(np.arange(self.c.grid**2), self.c.grid)
        turned = np.concatenate([(x[:, None] + 1) * f, (y[:, None] + 1) * f], axis=1)
        return np.concatenate([turned, np.zeros((1, d // 2))])

    def rotate(self, x):
        """Adjacent components turn as pairs."""
        d = x.shape[-1]
        cos, sin = np.cos(self.angles(d)), np.sin(self.angles(d))
        one, two = x[..., 0::2], x[..., 1::2]
        return np.stack([one * cos - two * sin, one * sin + two * cos], axis=-1).reshape(x.shape)

    def mlp(self, x, name):
        return self.linear(self.gelu(self.linear(x, name + "fc1")), name + "fc2")

    def gelu(self, x):
        return gelu(x)

    # From patches to features.

    def pixel_shuffle(self, h):
        """[N, n, C] -> [N, n/4, 4C]: the four patches of a square side by side, in reading order."""
        N, g, C = len(h), self.c.grid, h.shape[-1]
        h = h.reshape(N, g // 2, 2, g // 2, 2, C)  # N, i, dy, j, dx, c
        return h.transpose(0, *self.shuffled).reshape(N, g * g // 4, 4 * C)

    shuffled = (1, 3, 2, 4, 5)

    def adapt(self, s):
        """[N, n/4, 4C] -> [N, n/4, F]."""
        z = self.adapter_gelu(s @ self.w["vision_adapter.mlp.fc1.weight"].T)
        return self.last_gelu(z @ self.w["vision_adapter.mlp.fc2.weight"].T)

    def adapter_gelu(self, x):
        return gelu(x)

    def last_gelu(self, x):
        return self.adapter_gelu(x)

    def project(self, z):
        return z @ self.w[PROJECTOR].T


PROJECTOR = "multi_modal_projector.linear_1.weight"


class Model:
    """Words and pictures. The features take the places of the patch tokens, in order."""

    def __init__(self, encoder: Encoder, text: llama4_numpy.Model, patch_token: int):
        self.encoder, self.text, self.patch_token = encoder, text, patch_token

    def logits(self, tokens, tiles) -> np.ndarray:
        """tokens: T ids, tiles: [N, P, P, 3] bytes. Returns [T, V]."""
        return self.logits_of(tokens, self.encoder.features(tiles))

    def logits_of(self, tokens, features) -> np.ndarray:
        """The text model reads rows of its embedding: each feature becomes one row more."""
        tokens = np.array(tokens)
        places = np.flatnonzero(tokens == self.patch_token)
        if len(places) != len(features):
            raise ValueError(f"{len(places)} patch tokens and {len(features)} features")
        w = self.text.w
        words = w["embed_tokens.weight"]
        tokens[places] = len(words) + np.arange(len(features))
        self.text.w = {
            **w,
            "embed_tokens.weight": np.concatenate([words, features]),
            "lm_head.weight": w.get("lm_head.weight", words),
        }
        try:
            return self.text.logits(tokens)
        finally:
            self.text.w = w


def split_weights(weights):
    """The text model's tensors and ours, ours by the names of the vision model."""
    ours, theirs = {}, {}
    for name, value in weights.items():
        if name.startswith("vision_model."):  # the other page calls every MLP a feed_forward
            ours[name.removeprefix("vision_model.").replace(".feed_forward.", ".mlp.")] = value
        else:
            (ours if name == PROJECTOR else theirs)[name] = value
    return ours, theirs


def load(folder: Path) -> Model:
    raw = json.loads((folder / "config.json").read_text())
    vision, text = split_weights(llama4_numpy.read_weights(folder))
    return Model(
        Encoder(VisionConfig.of(raw["vision_config"]), vision),
        llama4_numpy.Model(llama4_numpy.Config.read(folder / "config.json"), text),
        raw["image_token_index"],
    )


class LastLayer(Encoder):
    """Remembers what the last layer gave."""

    def layer(self, h, name):
        self.last = Encoder.layer(self, h, name)
        return self.last


def released_width():
    """The layer's output [577, 1408] and the features [144, D] at the released sizes."""
    weights = {n: w.astype(np.float64) for n, w in vision_cases.released_weights()}
    encoder = LastLayer(VisionConfig.of(vision_cases.RELEASED), split_weights(weights)[0])
    features = encoder.features(vision_cases.released_tile())
    return encoder.last[0], features


def compare(folder: Path) -> dict[str, float]:
    """File -> relative difference between it and this model."""
    if (folder / "config.json").exists():
        model, tiles = load(folder), np.load(folder / "tiles.npy")
        tokens = json.loads((folder / "tokens.json").read_text())
        features = model.encoder.features(tiles)
        ours = {"features.npy": features, "logits.npy": model.logits_of(tokens, features)}
    else:
        layer, features = released_width()
        ours = {
            "layer.npy": layer[vision_cases.RELEASED_LAYER_ROWS],
            "features.npy": features[vision_cases.RELEASED_FEATURE_ROWS],
        }
    return {
        name: relative_difference(value, np.load(folder / name).astype(np.float64))
        for name, value in ours.items()
    }


def main() -> int:
    worst = 0.0
    for folder in map(Path, sys.argv[1:]):
        differences = compare(folder)
        worst = max(worst, *differences.values())
        print(f"{folder.name:20}", *(f"{name} {x:.1e}" for name, x in differences.items()))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
