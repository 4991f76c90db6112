"""The golden cases: what each tiny model is, as make_goldens.py builds and saves it.

A case says `what` it covers (the text of goldens.json), the `config` fields in which it differs from
the base, the length of its prompt in `tokens`, and where it applies

    older       write config.older.json too, with these fields changed; `drop` lists fields to leave
                out, and moe_layers is left out unless keep_moe_layers
    dtype       the weights' type in the file
    save        arguments of save_pretrained
    llama       a dense `llama` model, on the base LLAMA
    multimodal  Llama4ForConditionalGeneration with the tower VISION
"""

import torch

SCOUT = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=12,  # no multiple of a vector's length: the ends of rows are met too
    intermediate_size_mlp=20,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=1,
    interleave_moe_layer_step=1,
    use_qk_norm=True,
    attention_chunk_size=16,
    attn_temperature_tuning=True,
    floor_scale=8,
    attn_scale=0.4,  # the releases have 0.1 (case scout); more makes a step of the scale plainer
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=[2, 3],
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)
LLAMA = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=2,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)


def llama3_rope(factor, low, high, context, theta):
    """Small theta and context, so that few pairs and short prompts meet every branch of the rule."""
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


FULL, CHUNKED = "full_attention", "chunked_attention"

CASES = {
    "scout": dict(
        what="Scout in miniature: three chunked RoPE layers and a NoPE one, qk-norm, temperature, top-1 "
        "of 4 experts, rope scaling 16/1/1",
        config=dict(
            intermediate_size=16,
            attn_scale=0.1,
            rope_parameters=llama3_rope(16.0, 1.0, 1.0, 64, 500000.0),
        ),
        tokens=72,
        older=dict(attn_temperature_tuning=4, no_rope_layers=[], attention_bias=False),
    ),
    "scout_8_1_4": dict(
        what="the early Scout rope scaling 8/1/4: pairs kept, blended and divided",
        config=dict(
            head_dim=16,
            num_key_value_heads=1,
            rope_parameters=llama3_rope(8.0, 1.0, 4.0, 64, 1000.0),
        ),
        tokens=64,
        older=dict(attn_temperature_tuning=4),
    ),
    "scout_no_scaling": dict(
        what="Scout without rope scaling; rms_norm_eps 0.05, which the qk-norm shares",
        config=dict(rms_norm_eps=0.05),
        tokens=48,
        older=dict(no_rope_layers=[]),
    ),
    "maverick": dict(
        what="Maverick in miniature: 8 layers, dense and MoE in turn, 6 experts, no qk-norm, no rope "
        "scaling; the family's temperature defaults, out of this prompt's reach",
        config=dict(
            num_hidden_layers=8,
            interleave_moe_layer_step=2,
            num_local_experts=6,
            use_qk_norm=False,
            floor_scale=8192,
            attn_scale=0.1,
        ),
        tokens=72,
        older=dict(
            drop=["attn_temperature_tuning", "floor_scale", "attn_scale", "no_rope_layer_interval"]
        ),
    ),
    "dense": dict(
        what="llama4 without experts: interleave_moe_layer_step 0, moe_layers []",
        config=dict(interleave_moe_layer_step=0, moe_layers=[]),
        tokens=40,
        older=dict(),
    ),
    "gqa_5_to_1": dict(
        what="ten query heads share two key/value heads, five to one; hidden 40, 10 heads of 8",
        config=dict(hidden_size=40, num_attention_heads=10),
        tokens=40,
    ),
    "wide_heads": dict(
        what="heads x head_dim = 64, hidden 32; as many key/value heads as query heads",
        config=dict(head_dim=16, num_key_value_heads=4),
        tokens=40,
    ),
    "top_2": dict(
        what="two of five experts per token",
        config=dict(num_local_experts=5, num_experts_per_tok=2),
        tokens=40,
    ),
    "rope_list": dict(
        what="explicit no_rope_layers 0,1,1,0,1 and moe_layers 0,3,4 that no interval gives",
        config=dict(num_hidden_layers=5, no_rope_layers=[0, 1, 1, 0, 1], moe_layers=[0, 3, 4]),
        tokens=40,
        older=dict(keep_moe_layers=True),
    ),
    "rope_everywhere": dict(
        what="layer_types all full_attention, RoPE on every layer: nothing chunked, no NoPE layer",
        config=dict(no_rope_layers=[1, 1, 1, 1], layer_types=[FULL] * 4),
        tokens=40,
    ),
    "layer_types": dict(
        what="layer_types apart from RoPE: a chunked NoPE layer and a full RoPE layer",
        config=dict(no_rope_layers=[1, 0, 1, 0], layer_types=[CHUNKED, CHUNKED, FULL, FULL]),
        tokens=48,
    ),
    "no_chunks": dict(
        what="attention_chunk_size null: every layer sees the whole past",
        config=dict(attention_chunk_size=None),
        tokens=40,
        older=dict(),
    ),
    "long_prompt": dict(
        what="128 tokens over eight chunks of 16, no qk-norm",
        config=dict(use_qk_norm=False),
        tokens=128,
    ),
    "short_chunks": dict(
        what="chunks of 5, which divides neither the prompt nor a power of two",
        config=dict(attention_chunk_size=5),
        tokens=48,
    ),
    "temperature": dict(
        what="strong temperature: floor_scale 4, attn_scale 0.3; a NoPE layer after every RoPE layer",
        config=dict(floor_scale=4, attn_scale=0.3, no_rope_layer_interval=2),
        tokens=64,
    ),
    "no_temperature": dict(
        what="attn_temperature_tuning false",
        config=dict(attn_temperature_tuning=False, num_hidden_layers=3, no_rope_layer_interval=2),
        tokens=48,
        older=dict(attn_temperature_tuning=False),
    ),
    "tied": dict(
        what="llama4 with tied embeddings: no lm_head tensor; 3 layers, the last one NoPE",
        config=dict(tie_word_embeddings=True, num_hidden_layers=3, no_rope_layer_interval=3),
        tokens=40,
    ),
    "multimodal": dict(
        what="Llama4ForConditionalGeneration: text_config, vision tower and projector; text-only prompt",
        multimodal=True,
        config=dict(rope_parameters=llama3_rope(16.0, 1.0, 1.0, 64, 500000.0)),
        tokens=40,
        older=dict(attn_temperature_tuning=4, no_rope_layers=[]),
    ),
    "sharded": dict(
        what="three shards with an index",
        config=dict(num_hidden_layers=3, no_rope_layer_interval=3),
        tokens=40,
        save=dict(max_shard_size="48KB"),
    ),
    "bf16": dict(
        what="weights stored in bfloat16; rows of 32 and 64 so that 32-value blocks fit everywhere",
        config=dict(
            intermediate_size=32,
            num_local_experts=2,
            intermediate_size_mlp=64,
            interleave_moe_layer_step=2,
        ),
        dtype=torch.bfloat16,
        tokens=40,
    ),
    "f16": dict(what="weights stored in float16", config=dict(), dtype=torch.float16, tokens=40),
    "llama": dict(
        what="dense Llama 3: half-split rotation, rope scaling 8/1/4, untied",
        llama=True,
        config=dict(rope_parameters=llama3_rope(8.0, 1.0, 4.0, 64, 1000.0), head_dim=16),
        tokens=64,
        older=dict(),
    ),
    "llama_tied": dict(
        what="SmolLM2 in miniature: tied embeddings, no head_dim in the older config",
        llama=True,
        config=dict(
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        ),
        tokens=40,
        older=dict(drop=["head_dim"]),
    ),
    "llama_gqa_3_to_1": dict(
        what="Llama with nine query heads on three key/value heads; hidden 36; weights in bfloat16",
        llama=True,
        config=dict(hidden_size=36, num_attention_heads=9, num_key_value_heads=3),
        dtype=torch.bfloat16,
        tokens=40,
    ),
}

VISION = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,  # = hidden_size / pixel_shuffle_ratio^2: the adapter's first matrix reads it
    image_size=16,
    patch_size=4,
    projector_input_dim=24,
    projector_output_dim=24,
    vision_output_dim=24,
)
