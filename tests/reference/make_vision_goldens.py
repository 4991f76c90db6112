"""Writes the vision goldens: tiny random models with eyes, and what transformers sees with them.

    python make_vision_goldens.py [--out tests/data/vision] [--only NAME]

Each case becomes a folder as `save_pretrained` writes it, plus

    tokens.json     the whole prompt, a list of ids, with markers, separators and patch tokens
    tiles.npy       uint8 [N, P, P, 3]: the pixels of all tiles before normalisation
    features.npy    float32 [N * tokens per tile, D]: what takes the places of the patch tokens
    logits.npy      float32 [tokens, vocab]: eval mode, float32, eager attention, whole prompt

and an entry in goldens.json with what bfloat16 everywhere costs the features, and the figures behind
three demands, any of which stops this script:

* the float64 page llama4_vision_numpy.py agrees to 1e-5 of the largest feature and logit, and so does
  transformers with its other attention (sdpa);
* every mechanism matters: with one mechanism changed (class token first, tanh GELU, ...) features or
  logits move by more than 2e-3 of the largest in one case at least, twenty times the tolerance of
  Drover's test;
* no expert is chosen by a hair: prompt and pixels are the clearest of 200.

The folder `released_width` has no weights: one layer and the adapter at the released sizes, filled by
a formula that any language can repeat, and a few rows of what comes out.

Weights, prompts and pixels come from numpy's generator and a fixed seed per case.
"""

import argparse
import json
import math
import shutil
import warnings
import zlib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Llama4Config, Llama4ForConditionalGeneration

import llama4_vision_numpy as page
from llama4_numpy import relative_difference
from llama4_vision_numpy import Encoder
from vision_cases import (
    CASES,
    IMAGE_END,
    IMAGE_START,
    IMAGE_TOKEN,
    PATCH_TOKEN,
    RELEASED,
    RELEASED_FEATURE_ROWS,
    RELEASED_HIDDEN,
    RELEASED_LAYER_ROWS,
    TEXT,
    VOCAB,
    X_SEPARATOR,
    Y_SEPARATOR,
    released_tile,
    released_weights,
)

AGREEMENT = 1e-5  # float32 against float64; a tenth of the test's tolerance
SENSITIVITY = 2e-3
PROMPTS_TRIED = 200

# ---------------------------------------------------------------------------------------------------
# Building and saving.


def configuration(text, vision):
    return Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
        image_token_index=PATCH_TOKEN,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )


@torch.no_grad()
def fill(model, rng, case):
    """Random weights large enough that every mechanism bends what comes out, in the case's type."""
    dtype = getattr(torch, case.get("dtype", "float32"))
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if name.endswith("embed_tokens.weight"):
            value = rng.standard_normal(shape)
        elif name.endswith(("class_embedding", "positional_embedding_vlm")):
            value = 0.7 * rng.standard_normal(shape)
        elif len(shape) == 1:  # norms and biases
            value = (0.0 if name.endswith("bias") else 1.0) + 0.4 * rng.standard_normal(shape)
        else:
            fan_in = shape[-2] if "experts." in name and "shared" not in name else shape[-1]
            sharp = ("*router*", "vision*.q_proj*", "vision*.k_proj*", "*patch_embedding*")
            gain = 2.0 if any(fnmatch(name, pattern) for pattern in sharp) else 1.2
            value = rng.standard_normal(shape) * gain / np.sqrt(fan_in)
        for pattern, factor in case.get("gain", {}).items():
            value = value * factor if fnmatch(name, "*" + pattern) else value
        for pattern, constant in case.get("lean", {}).items():
            value = value + constant if fnmatch(name, "*" + pattern) else value
        p.copy_(torch.from_numpy(value.astype(np.float32)).to(dtype).to(torch.float32))
    model.tie_weights()


def tiles_of(picture):
    rows, columns = picture
    return rows * columns + (rows * columns > 1)


def picture_tokens(picture, tokens_per_tile):
    rows, columns = picture
    tile, out = [PATCH_TOKEN] * tokens_per_tile, [IMAGE_START]
    if rows * columns > 1:
        for _ in range(rows):
            out += tile + ([X_SEPARATOR] + tile) * (columns - 1) + [Y_SEPARATOR]
    return out + [IMAGE_TOKEN] + tile + [IMAGE_END]


def draw(case, rng, c):
    """A prompt's ids and the pixels of its tiles."""
    tokens = []
    for part in case["prompt"]:
        if isinstance(part, int):  # ids from 4 on: the first ones are the special tokens
            words = [int(t) for t in rng.integers(4, X_SEPARATOR, part)]
            tokens += words if tokens else [1] + words[1:]
        else:
            tokens += picture_tokens(part, c.tokens_per_tile)
    tiles = sum(map(tiles_of, pictures_of(case)))
    return tokens, rng.integers(0, 256, (tiles, c.image_size, c.image_size, 3), dtype=np.uint8)


def pictures_of(case):
    return [part for part in case["prompt"] if not isinstance(part, int)]


def choose_prompt(model, rng, case):
    best, best_margin = None, -1.0
    for _ in range(PROMPTS_TRIED):
        tokens, tiles = draw(case, rng, model.encoder.c)
        model.text.router_margin = np.inf
        model.logits(tokens, tiles)
        if model.text.router_margin > best_margin:
            best, best_margin = (tokens, tiles), model.text.router_margin
    return *best, best_margin


def normalised(tiles):
    """float32 [N, 3, P, P], each step rounded to float32."""
    x = tiles.astype(np.float32) / np.float32(255)
    x = (x - np.float32(0.5)) / np.float32(0.5)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@torch.no_grad()
def run(model, tokens, tiles):
    """Features and logits of transformers, in the model's type."""
    pixels = normalised(tiles).to(model.dtype)
    out = model(input_ids=torch.tensor([tokens]), pixel_values=pixels, use_cache=False)
    features = model.multi_modal_projector(out.image_hidden_states.flatten(0, 1))
    return features.float().numpy(), out.logits[0].float().numpy()


def relative_rms(a, b):
    """Of the difference, beside that of b."""
    return math.sqrt(np.mean(np.square(a - b, dtype=float)) / np.mean(np.square(b, dtype=float)))


def figure(x, digits="1e"):
    return float(f"{x:.{digits}}")


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------
# Mechanisms, changed one at a time. A change of the encoder is a set of other methods.


def without_bias(ending):
    def linear(self, x, name):
        y = Encoder.linear(self, x, name)
        return y - self.w[name + ".bias"] if name.endswith(ending) else y

    return dict(linear=linear)


def without_norm_bias(ending):
    def layer_norm(self, x, name):
        y = Encoder.layer_norm(self, x, name)
        return y - self.w[name + ".bias"] if name.endswith(ending) else y

    return dict(layer_norm=layer_norm)


def without_norm(ending):
    def layer_norm(self, x, name):
        return x if name.endswith(ending) else Encoder.layer_norm(self, x, name)

    return dict(layer_norm=layer_norm)


def other_eps(ending):
    return dict(eps=lambda self, name: 1e-6 if name.endswith(ending) else 1e-5)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def class_first():
    """Also in the position embedding: its row 0 is then the class token's."""

    def with_class(self, h):
        return np.roll(Encoder.with_class(self, h), 1, axis=1)

    return dict(
        with_class=with_class,
        without_class=lambda self, h: h[:, 1:],
        angles=lambda self, d: np.roll(Encoder.angles(self, d), 1, axis=0),
    )


def everybody_in_one_sequence():
    """Tiles see each other."""

    def attention(self, a, name):
        return Encoder.attention(self, a.reshape(1, -1, a.shape[-1]), name).reshape(a.shape)

    def rotate(self, x):
        split = x.reshape(x.shape[1], -1, self.c.grid**2 + 1, x.shape[-1])  # heads, tiles, tokens
        return Encoder.rotate(self, split).reshape(x.shape)

    return dict(attention=attention, rotate=rotate)


def rotate_halves(self, x):
    """Component k turns with k + d/2 instead of its neighbour."""
    d = x.shape[-1]
    mixed = x.reshape(*x.shape[:-1], 2, d // 2).swapaxes(-1, -2).reshape(x.shape)
    turned = Encoder.rotate(self, mixed)
    return turned.reshape(*x.shape[:-1], d // 2, 2).swapaxes(-1, -2).reshape(x.shape)


def y_before_x(self, d):
    x, y = np.split(Encoder.angles(self, d), 2, axis=1)
    return np.concatenate([y, x], axis=1)


def x_and_y_in_turn(self, d):
    x, y = np.split(Encoder.angles(self, d), 2, axis=1)
    return np.stack([x, y], axis=-1).reshape(len(x), -1)


def positions_from_zero(self, d):
    first = Encoder.angles(self, d)[:1].copy()
    angles = Encoder.angles(self, d) - first
    angles[-1] = 0
    return angles


def class_token_turns(self, d):
    """As the patch after the last would: first column, one row further down."""
    angles = Encoder.angles(self, d)
    x, _ = np.split(angles[0], 2)
    angles[-1] = np.concatenate([x, (self.c.grid + 1) * x])
    return angles


def angles_over_whole_head(self, d):
    """The exponent counts to d instead of d/2."""
    angles = Encoder.angles(self, d)
    f = self.c.rope_theta ** (np.arange(0, d // 2, 2) / d)
    return angles * np.concatenate([f, f])


def class_not_seen(self, q, k):
    scores = Encoder.scores(self, q, k)
    scores[..., -1] = -np.inf
    return scores


def scaled_by_width(self, q, k):
    return Encoder.scores(self, q, k) / math.sqrt(q.shape[1])


def only_patches(self, h):
    return Encoder.with_class(self, h) - self.w["positional_embedding_vlm"]


BIASES = [f"self_attn.{x}_proj" for x in "qkvo"] + ["mlp.fc1", "mlp.fc2"]
NORMS = ["layernorm_pre", "input_layernorm", "post_attention_layernorm", "layernorm_post"]
ENCODER_CHANGES = {
    "pixels from 0 to 1": dict(normalise=lambda self, tiles: tiles / 255),
    "BGR": dict(normalise=lambda self, tiles: Encoder.normalise(self, tiles[..., ::-1])),
    "colour last in a patch": dict(inside_patch=(2, 4, 5)),
    "x before y in a patch": dict(inside_patch=(5, 4, 2)),
    "class token first": class_first(),
    "class token not seen": dict(scores=class_not_seen),
    "class token turns": dict(angles=class_token_turns),
    "no position embedding": dict(with_class=only_patches),
    "y before x": dict(angles=y_before_x),
    "x and y in turn": dict(angles=x_and_y_in_turn),
    "positions from 0": dict(angles=positions_from_zero),
    "angles over the whole head": dict(angles=angles_over_whole_head),
    "halves of a head as pairs": dict(rotate=rotate_halves),
    "no rotation": dict(rotate=lambda self, x: x),
    "scores divided by sqrt(C)": dict(scores=scaled_by_width),
    "tiles see each other": everybody_in_one_sequence(),
    "tanh GELU": dict(gelu=lambda self, x: tanh_gelu(x)),
    "tanh GELU in the adapter": dict(adapter_gelu=lambda self, x: tanh_gelu(x)),
    "quick GELU": dict(gelu=lambda self, x: quick_gelu(x)),
    "one GELU in the adapter": dict(last_gelu=lambda self, x: x),
    "shuffle (dx, dy, c)": dict(shuffled=(1, 3, 4, 2, 5)),
    "shuffle (c, dy, dx)": dict(shuffled=(1, 3, 5, 2, 4)),
    "features in columns": dict(shuffled=(3, 1, 2, 4, 5)),
    **{f"no bias of {x}": without_bias(x) for x in BIASES},
    **{f"no bias of {x}": without_norm_bias(x) for x in NORMS},
    **{f"no {x}": without_norm(x) for x in NORMS},
    **{f"{x} with eps 1e-6": other_eps(x) for x in NORMS},
}


def encoder_changes(model):
    """(name, encoder) of every changed encoder."""
    encoder = model.encoder
    for name, methods in ENCODER_CHANGES.items():
        yield name, type("Changed", (Encoder,), methods)(encoder.c, encoder.w)
    base = 1e4 if encoder.c.rope_theta != 1e4 else 100.0
    yield "another theta", Encoder(replace(encoder.c, rope_theta=base), encoder.w)


def tile_orders(pictures):
    """(name, order) of every other order in which the tiles of a prompt may come."""
    firsts = np.cumsum([0] + [tiles_of(p) for p in pictures])
    own = [np.arange(first, first + tiles_of(p)) for first, p in zip(firsts, pictures)]
    columns = [
        np.append(tiles[:-1].reshape(p).T, tiles[-1:]) if len(tiles) > 1 else tiles
        for tiles, p in zip(own, pictures)
    ]
    orders = {
        "tiles in columns": columns,
        "tiles backwards": [np.append(tiles[:-1][::-1], tiles[-1:]) for tiles in own],
        "global tile first": [np.roll(tiles, 1) for tiles in own],
        "pictures backwards": own[::-1],
    }
    for name, order in orders.items():
        order = np.concatenate(order)
        if not np.array_equal(order, np.arange(len(order))):
            yield name, order


def scatter_changes(model, tokens, features):
    """(name, logits) of every other way to put features into the prompt."""
    patches = np.array(tokens) == PATCH_TOKEN
    own = model.text.w["embed_tokens.weight"][PATCH_TOKEN]
    backwards = features.reshape(-1, model.encoder.c.tokens_per_tile, features.shape[-1])[:, ::-1]
    yield "no features", model.text.logits(tokens)
    yield "features added", model.logits_of(tokens, features + own)
    yield "features one late", model.logits_of(tokens, np.roll(features, 1, axis=0))
    yield "features backwards", model.logits_of(tokens, backwards.reshape(features.shape))

    def both_ways(self, i, query, key):
        return type(model.text).allowed(self, i, query, key) | (patches[query] & patches[key])

    seeing = type("Changed", (type(model.text),), dict(allowed=both_ways))
    changed = page.Model(model.encoder, seeing(model.text.c, model.text.w), PATCH_TOKEN)
    yield "patch tokens see each other", changed.logits_of(tokens, features)


def change_matters(case, model, tokens, tiles):
    """How far each change of the encoder moves the features, and each change of order the logits.

    Left out is what changes nothing at all here: tiles cannot see each other where there is but one.
    """
    features = model.encoder.features(tiles)
    logits = model.logits_of(tokens, features)
    moved = {
        name: relative_difference(changed.features(tiles), features)
        for name, changed in encoder_changes(model)
    }
    rows = features.reshape(len(tiles), -1, features.shape[-1])
    for name, order in tile_orders(pictures_of(case)):
        other = model.logits_of(tokens, rows[order].reshape(features.shape))
        moved[name] = relative_difference(other, logits)
    for name, other in scatter_changes(model, tokens, features):
        moved[name] = relative_difference(other, logits)
    return {name: figure(x, "2g") for name, x in moved.items() if x > 0}


# ---------------------------------------------------------------------------------------------------


def make(name, case, out: Path) -> dict:
    rng = np.random.default_rng(zlib.crc32(f"vision {name}".encode()))
    dtype = getattr(torch, case.get("dtype", "float32"))
    model = Llama4ForConditionalGeneration(configuration({**TEXT, **case["text"]}, case["vision"]))
    fill(model, rng, case)

    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)

    # What is judged is what the folder says: see "What was learned" in README.md.
    def reload(attention, dtype=torch.float32):
        model = Llama4ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )
        return model.eval()

    ours = page.load(folder)
    tokens, tiles, margin = choose_prompt(ours, rng, case)
    features, logits = run(reload("eager"), tokens, tiles)
    assert features.shape[0] == tokens.count(PATCH_TOKEN) and logits.shape == (len(tokens), VOCAB)
    write_json(folder / "tokens.json", tokens)
    np.save(folder / "tiles.npy", tiles)
    np.save(folder / "features.npy", features)
    np.save(folder / "logits.npy", logits)

    exact_features = ours.encoder.features(tiles)
    exact_logits = ours.logits_of(tokens, exact_features)
    sdpa_features, sdpa_logits = run(reload("sdpa"), tokens, tiles)
    differences = {
        "numpy_features": relative_difference(features, exact_features),
        "numpy_logits": relative_difference(logits, exact_logits),
        "sdpa_features": relative_difference(sdpa_features, features),
        "sdpa_logits": relative_difference(sdpa_logits, logits),
    }
    for what, difference in differences.items():
        assert difference < AGREEMENT, (name, what, difference)
    low_features, _ = run(reload("eager", torch.bfloat16), tokens, tiles)
    assert margin > 1e-3, (name, "an expert is chosen by a hair", margin)

    moved = change_matters(case, ours, tokens, tiles)
    print(
        f"{name:18} features {differences['numpy_features']:.0e} ({np.abs(features).max():.1f})  logits "
        f"{differences['numpy_logits']:.0e} ({np.abs(logits).max():.1f})  margin {margin:.3f}  weakest changes "
        f"{sorted(moved.items(), key=lambda x: x[1])[:4]}",
        flush=True,
    )
    return {
        "name": name,
        "what": case["what"],
        "tokens": len(tokens),
        "pictures": [
            {"rows": rows, "columns": columns, "tiles": tiles_of((rows, columns))}
            for rows, columns in pictures_of(case)
        ],
        "tokens_per_tile": ours.encoder.c.tokens_per_tile,
        "largest_feature": figure(np.abs(features).max(), "4g"),
        "largest_logit": figure(np.abs(logits).max(), "4g"),
        **{f"{what}_difference": figure(x) for what, x in differences.items()},
        "bf16_features_rms": figure(relative_rms(low_features, features)),
        "router_margin": figure(margin),
        "change_matters": moved,
    }


@torch.no_grad()
def make_released_width(out: Path) -> dict:
    model = Llama4ForConditionalGeneration(
        configuration({**TEXT, "hidden_size": RELEASED_HIDDEN, "num_hidden_layers": 1}, RELEASED)
    ).eval()
    weights = dict(released_weights())
    for name, p in model.named_parameters():
        if not name.startswith("language_model."):
            p.copy_(torch.from_numpy(weights[name]))
    kept = []
    model.vision_model.model.layers[0].register_forward_hook(
        lambda module, args, output: kept.append(output[0])
    )
    tile = released_tile()
    shuffled = model.vision_model(normalised(tile)).last_hidden_state
    features = model.multi_modal_projector(shuffled.flatten(0, 1)).numpy()
    layer = kept[0].reshape(577, 1408).numpy()

    exact_layer, exact_features = page.released_width()
    differences = {
        "numpy_layer_difference": relative_difference(layer, exact_layer),
        "numpy_features_difference": relative_difference(features, exact_features),
    }
    for what, difference in differences.items():
        assert difference < AGREEMENT, ("released_width", what, difference)

    folder = out / "released_width"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    np.save(folder / "layer.npy", layer[RELEASED_LAYER_ROWS])
    np.save(folder / "features.npy", features[RELEASED_FEATURE_ROWS])
    print(f"released_width {differences}", flush=True)
    return {
        "layer_rows": RELEASED_LAYER_ROWS,
        "feature_rows": RELEASED_FEATURE_ROWS,
        "largest_in_layer": figure(np.abs(layer).max(), "4g"),
        "largest_feature": figure(np.abs(features).max(), "4g"),
        **{what: figure(x) for what, x in differences.items()},
    }


def strongest(cases):
    """Every change with the case that shows it best."""
    best = {change: (0.0, "") for change in ENCODER_CHANGES}
    for case in cases:
        for change, moved in case["change_matters"].items():
            best[change] = max(best.get(change, (0.0, "")), (moved, case["name"]))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=root / "tests" / "data" / "vision")
    parser.add_argument("--only", help="make one case and leave goldens.json alone")
    args = parser.parse_args()

    torch.set_num_threads(1)  # one order of summation, so the files come out the same everywhere
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")

    args.out.mkdir(parents=True, exist_ok=True)
    if args.only:
        make(args.only, CASES[args.only], args.out)
        return
    made = [make(name, case, args.out) for name, case in CASES.items()]
    best = strongest(made)
    for change, (moved, name) in sorted(best.items(), key=lambda x: x[1]):
        print(f"{change:36} {moved:8.2g}  {name}")
        assert moved > SENSITIVITY, (change, moved, name)
    write_json(
        args.out / "goldens.json",
        {
            "made_with": {
                "transformers": transformers.__version__,
                "torch": torch.__version__.split("+")[0],
            },
            "cases": made,
            "released_width": make_released_width(args.out),
        },
    )


if __name__ == "__main__":
    main()
