"""The gradient cases: what each tiny model is, as make_gradients.py builds it, and what it reads.

A case says `what` it covers, the class and configuration of its model, and its `documents`: a list of
lengths, or of prompts as in vision_cases.py. Where it applies also

    auxiliary  gradients with these coefficients of the losses that keep experts in use, too
    steps      20 steps of AdamW, with these settings
    biased     losses with these numbers added to each layer's router logits when experts are chosen
    lora       rank and alpha of adapters; the gradients are theirs and nobody else's
"""

from vision_cases import eyes, picture

# Sizes that no vector length divides, and H * d that is not D.
LLAMA4 = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=12,
    intermediate_size_mlp=20,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    num_local_experts=4,
    num_experts_per_tok=1,
    interleave_moe_layer_step=1,
    no_rope_layer_interval=4,
    use_qk_norm=True,
    attention_chunk_size=8,
    attn_temperature_tuning=True,
    floor_scale=4,
    attn_scale=0.4,
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=[2, 3],
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)

CASES = {
    "text": dict(
        what="a dense Llama: two layers, grouped heads, untied",
        model="llama",
        config=dict(
            vocab_size=48,
            hidden_size=24,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            rms_norm_eps=1e-5,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        documents=[13, 22, 2, 7],
        steps=dict(rate=0.003, betas=[0.9, 0.95], epsilon=1e-8, decay=0.1, clip=None),
    ),
    "moe": dict(
        what="Llama 4: L L L G in chunks of 8, documents longer than a chunk, qk-norm, temperature, "
        "top-1 of four experts beside the shared one; with and without the losses of the experts",
        model="llama4",
        config=dict(),
        documents=[19, 6, 16],
        auxiliary=dict(balance=0.1, router_z=0.01),
        steps=dict(rate=0.003, betas=[0.9, 0.99], epsilon=1e-8, decay=0.05, clip=0.5),
    ),
    "top_2": dict(
        what="two of five experts, dense and MoE layers in turn, global and local ones too, no "
        "qk-norm; a document of one token",
        model="llama4",
        config=dict(
            intermediate_size=8,
            num_local_experts=5,
            num_experts_per_tok=2,
            interleave_moe_layer_step=2,
            no_rope_layer_interval=2,
            use_qk_norm=False,
            attention_chunk_size=5,
        ),
        documents=[12, 1, 9, 11],
        biased=[1.5, -1.0, 0.0, 0.5, -0.5],
    ),
    "vision": dict(
        what="Llama 4 with eyes: a picture of two tiles and their whole, one of one tile, and a "
        "document without a picture; chunks that end inside a tile",
        model="vision",
        config=dict(
            vocab_size=64, num_hidden_layers=2, no_rope_layer_interval=2, num_local_experts=2
        ),
        vision=eyes(12, 3, 24, 4, adapter=20),
        documents=[[4, picture(1, 2), 5], [3, picture(1, 1), 6], [8]],
    ),
    "tied": dict(
        what="the embedding is the output matrix; a local and a global layer, both dense",
        model="llama4",
        config=dict(
            tie_word_embeddings=True,
            num_hidden_layers=2,
            interleave_moe_layer_step=0,
            moe_layers=[],
            no_rope_layer_interval=2,
        ),
        documents=[11, 17],
    ),
    "lora": dict(
        what="adapters on attention, the shared expert and every expert of a model that stays as it is",
        model="llama4",
        config=dict(
            intermediate_size=8, num_hidden_layers=2, num_local_experts=3, no_rope_layer_interval=2
        ),
        documents=[14, 10],
        lora=dict(rank=3, alpha=6),
    ),
}
