"""From the tensors of transformers to those of GGUF: names, layouts, shapes.

Like numpy for logits, a second way to say what src/model/tensor_table.cpp says.
"""

import numpy as np

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "feed_forward.gate_proj.weight": "ffn_gate.weight",
    "feed_forward.up_proj.weight": "ffn_up.weight",
    "feed_forward.down_proj.weight": "ffn_down.weight",
    "feed_forward.router.weight": "ffn_gate_inp.weight",
    "feed_forward.experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "feed_forward.experts.down_proj": "ffn_down_exps.weight",
    "feed_forward.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "feed_forward.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "feed_forward.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
VISION_LAYER = {
    "input_layernorm": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "patch_embedding.linear.weight": "v.patch_embd.weight",
    "class_embedding": "v.class_embd",
    "positional_embedding_vlm": "v.position_embd.weight",
    "layernorm_pre.weight": "v.pre_ln.weight",
    "layernorm_pre.bias": "v.pre_ln.bias",
    "layernorm_post.weight": "v.post_ln.weight",
    "layernorm_post.bias": "v.post_ln.bias",
    "vision_adapter.mlp.fc1.weight": "mm.model.mlp.1.weight",
    "vision_adapter.mlp.fc2.weight": "mm.model.mlp.2.weight",
    "multi_modal_projector.linear_1.weight": "mm.model.fc.weight",
}


def gguf_name(name):
    vision = name.startswith("vision_model.")
    name = name.removeprefix("vision_model.").removeprefix("language_model.")
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, part = name.split(".", 3)
    if vision:
        part, end = part.rsplit(".", 1)
        return f"v.blk.{layer}.{VISION_LAYER[part]}.{end}"
    return f"blk.{layer}.{LAYER[part]}"


def gguf_tensors(tensors, head_dim=None):
    """Names, layouts and shapes of GGUF for (name, tensor) of transformers.

    head_dim: of a model whose queries and keys turn component k with k + d/2, as `llama` does.
    """
    out = {}
    for name, x in tensors:
        x = x.detach().numpy()
        to = gguf_name(name)
        if to.endswith("_exps.weight"):  # [E, in, out] there
            x = x.swapaxes(1, 2)
        if head_dim and to.endswith(("attn_q.weight", "attn_k.weight")):
            pairs = x.reshape(-1, 2, head_dim // 2, x.shape[-1]).swapaxes(1, 2)
            x = pairs.reshape(x.shape)  # neighbours turn together here
        if "gate_up" in to:
            gate, up = np.split(x, 2, axis=1)
            out[to.replace("gate_up", "gate")], out[to.replace("gate_up", "up")] = gate, up
        else:
            out[to] = x
    return out
