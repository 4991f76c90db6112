"""The vision golden cases: what each tiny model with eyes is, as make_vision_goldens.py builds it.

A case says `what` it covers, in `text` and `vision` the config fields in which it differs from the
bases below, and its prompt: a list of words (a number: that many random ids) and pictures (rows,
columns), each picture with its marker and separator tokens. Where it applies also

    dtype   the weights' type in the file
    gain    factors on the usual random weights: pattern of the name's end -> factor
    lean    constants added to weights after that: pattern of the name's end -> constant
"""

import math

import numpy as np

# The ids that the releases have from 200080 on. IMAGE_TOKEN stands before the last tile; PATCH_TOKEN
# is the one whose embeddings are replaced.
VOCAB = 64
X_SEPARATOR, Y_SEPARATOR, IMAGE_TOKEN, IMAGE_START, IMAGE_END, PATCH_TOKEN = range(58, 64)

TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=12,  # no multiple of a vector's length: the ends of rows are met too
    intermediate_size_mlp=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=2,
    num_experts_per_tok=1,
    interleave_moe_layer_step=1,
    no_rope_layer_interval=2,
    use_qk_norm=True,
    attention_chunk_size=16,  # less than any picture of several tiles
    attn_temperature_tuning=True,
    floor_scale=8,
    attn_scale=0.4,
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=[2, 3],
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)
MAVERICK = dict(interleave_moe_layer_step=2, num_local_experts=3, use_qk_norm=False)


def eyes(hidden, heads, image, patch, adapter, **more):
    """Sizes that hang together: the adapter reads four tokens of `hidden` as one, and transformers
    builds its first matrix from the encoder's intermediate_size; its two widths and vision_output_dim
    have to be one number."""
    return dict(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        image_size=image,
        patch_size=patch,
        projector_input_dim=adapter,
        projector_output_dim=adapter,
        vision_output_dim=adapter,
        **{"num_hidden_layers": 2, **more},
    )


def picture(rows, columns):
    return (rows, columns)


CASES = {
    "one_tile": dict(
        what="one tile between words: no separators, no global tile; 2 heads of 12; weights stored in "
        "float16",
        text=dict(),
        vision=eyes(24, 2, 28, 7, adapter=20),
        dtype="float16",
        prompt=[9, picture(1, 1), 8],
    ),
    "three_tiles": dict(
        what="two tiles side by side and the global one; 3 heads of 4, 36 patches",
        text=dict(),
        vision=eyes(12, 3, 24, 4, adapter=28),
        prompt=[5, picture(1, 2), 6],
    ),
    "seventeen_tiles": dict(
        what="the most tiles a picture has, 4 x 4 and the global one; chunks longer than the prompt",
        text=dict(attention_chunk_size=8192),
        vision=eyes(12, 1, 16, 4, adapter=20),
        prompt=[6, picture(4, 4), 7],
    ),
    "two_pictures": dict(
        what="two pictures between words, of one tile and of three, one tile above the other",
        text=dict(hidden_size=20),
        vision=eyes(12, 3, 20, 5, adapter=24),
        prompt=[4, picture(1, 1), 7, picture(2, 1), 5],
    ),
    "neighbours": dict(
        what="three pictures with no word between the first two, the last of 1 x 3 tiles; 3 layers; "
        "tied embeddings: the features are no rows of the output matrix",
        text=dict(tie_word_embeddings=True),
        vision=eyes(16, 4, 16, 4, adapter=12, num_hidden_layers=3),
        prompt=[3, picture(1, 1), picture(1, 1), 2, picture(1, 3), 4],
    ),
    "picture_first": dict(
        what="the prompt begins with the picture, with not even a BOS before it; 1 head of 20; chunks "
        "of 7: borders inside tiles",
        text=dict(attention_chunk_size=7),
        vision=eyes(20, 1, 12, 3, adapter=16),
        prompt=[picture(2, 2), 9],
    ),
    "picture_last": dict(
        what="the prompt ends with the picture's end marker; the base of the vision encoder's rotation "
        "is 100, where all other cases have 10,000",
        text=dict(hidden_size=20, head_dim=12),
        vision=eyes(
            12, 1, 24, 6, 36, rope_parameters={"rope_type": "default", "rope_theta": 100.0}
        ),
        prompt=[10, picture(2, 1)],
    ),
    "maverick": dict(
        what="a text model like Maverick: 4 layers, dense and MoE in turn, 3 experts, no qk-norm",
        text=dict(**MAVERICK, num_hidden_layers=4, no_rope_layer_interval=4),
        vision=eyes(12, 3, 24, 4, adapter=20),
        prompt=[6, picture(2, 2), 6],
    ),
    "one_token_per_tile": dict(
        what="patches of 14 as in the releases, but four of them: a tile is one token; one layer",
        text=dict(**MAVERICK),
        vision=eyes(12, 1, 28, 14, adapter=12, num_hidden_layers=1),
        prompt=[5, picture(2, 2), 5],
    ),
    "bf16": dict(
        what="weights stored in bfloat16; all rows multiples of 32, so that 32-value blocks fit",
        text=dict(hidden_size=32, intermediate_size=32, intermediate_size_mlp=32),
        vision=eyes(32, 2, 32, 8, adapter=32),
        dtype="bfloat16",
        prompt=[6, picture(1, 2), 6],
    ),
    "small_numbers": dict(
        what="activations so small that the eps of every LayerNorm counts",
        text=dict(),
        vision=eyes(12, 1, 16, 4, adapter=16),
        gain={
            "patch_embedding.linear.weight": 0.01,
            "class_embedding": 0.01,
            "positional_embedding_vlm": 0.01,
            "layernorm_pre.*": 0.01,
            "self_attn.o_proj.weight": 0.005,
            "self_attn.o_proj.bias": 0.01,
            "layers.*.mlp.fc2.weight": 0.005,
            "mlp.fc2.bias": 0.01,
        },
        prompt=[5, picture(1, 2), 5],
    ),
    "gelu_tail": dict(  # farther out, float32's 1 + erf(x) has too few digits left to judge by
        what="most inputs of every GELU between -3 and -0.5, where its two formulas differ most",
        text=dict(num_hidden_layers=1),  # more layers would make more of its rounding
        vision=eyes(16, 2, 16, 4, adapter=20),
        gain={
            "layers.*.mlp.fc1.weight": 0.4,
            "layers.*.mlp.fc2.weight": 10.0,
            "vision_adapter.mlp.fc1.weight": 0.5,
            "vision_adapter.mlp.fc2.weight": 0.7,
            "multi_modal_projector.linear_1.weight": 20.0,
        },
        lean={  # the adapter has no biases: layernorm_post gives its inputs a mean instead
            "layers.*.mlp.fc1.bias": -2.6,
            "layernorm_post.bias": 1.0,
            "vision_adapter.mlp.fc1.weight": -1 / 64,
            "vision_adapter.mlp.fc2.weight": 0.9,
        },
        prompt=[5, picture(1, 2), 5],
    ),
}

# ---------------------------------------------------------------------------------------------------
# One layer and the adapter at the released sizes, from a formula instead of a file of 340 MB.

RELEASED = eyes(1408, 16, 336, 14, adapter=4096, num_hidden_layers=1)
RELEASED_HIDDEN = 5120  # of the text model
# Rows of the layer's output (before layernorm_post; 576 is the class token) and of the features.
RELEASED_LAYER_ROWS = [0, 1, 23, 24, 299, 552, 575, 576]
RELEASED_FEATURE_ROWS = [0, 77]

_LAYER, _WIDE, _WEIGHT = "vision_model.model.layers.0.", (5632, 1408), (1408, 1408)


def _norm(name):
    return [(name + ".weight", (1408,), 1, 1 / 2), (name + ".bias", (1408,), 0, 1 / 2)]


def _linear(name, shape, radius):
    return [(name + ".weight", shape, 0, radius), (name + ".bias", shape[:1], 0, 1 / 2)]


# Name, shape, centre, radius. A tensor's number is its place here, from 1 on; 0 is the tile. All
# radii are powers of two, so that only the last sum of `released_values` can round.
RELEASED_TENSORS = [
    ("vision_model.class_embedding", (1408,), 0, 1),
    ("vision_model.positional_embedding_vlm", (577, 1408), 0, 1),
    ("vision_model.patch_embedding.linear.weight", (1408, 588), 0, 1 / 8),
    *_norm("vision_model.layernorm_pre"),
    *_norm(_LAYER + "input_layernorm"),
    *_linear(_LAYER + "self_attn.q_proj", _WEIGHT, 1 / 16),
    *_linear(_LAYER + "self_attn.k_proj", _WEIGHT, 1 / 16),
    *_linear(_LAYER + "self_attn.v_proj", _WEIGHT, 1 / 16),
    *_linear(_LAYER + "self_attn.o_proj", _WEIGHT, 1 / 16),
    *_norm(_LAYER + "post_attention_layernorm"),
    *_linear(_LAYER + "mlp.fc1", _WIDE, 1 / 16),
    *_linear(_LAYER + "mlp.fc2", _WIDE[::-1], 1 / 32),
    *_norm("vision_model.layernorm_post"),
    ("vision_model.vision_adapter.mlp.fc1.weight", (4096, 5632), 0, 1 / 32),
    ("vision_model.vision_adapter.mlp.fc2.weight", (4096, 4096), 0, 1 / 16),
    ("multi_modal_projector.linear_1.weight", (RELEASED_HIDDEN, 4096), 0, 1 / 16),
]


def mix(tensor: int, count: int) -> np.ndarray:
    """64 well mixed bits for each element of a tensor: splitmix64's step and finaliser."""
    z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(tensor << 40)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def released_values(tensor: int, shape, centre, radius) -> np.ndarray:
    """float32: centre + radius * u, u in steps of 2^-23 from -1 up to, not including, 1."""
    u = (mix(tensor, math.prod(shape)) >> np.uint64(40)).astype(np.float32)
    u = u * np.float32(2.0**-23) - np.float32(1)
    return (np.float32(centre) + np.float32(radius) * u).reshape(shape)


def released_tile() -> np.ndarray:
    """One tile, [1, P, P, 3] bytes."""
    side = RELEASED["image_size"]
    bits = mix(0, side * side * 3) >> np.uint64(56)
    return bits.astype(np.uint8).reshape(1, side, side, 3)


def released_weights():
    """(name, float32 values) of every tensor."""
    for number, (name, *rest) in enumerate(RELEASED_TENSORS, start=1):
        yield name, released_values(number, *rest)
