"""Writes tests/data/vision/three_tiles/mmproj.gguf, run by hand: the vision encoder of a golden as
spec section 9.4 has it, by the Python gguf package, with the keys and names spelled out here. It has
none of Drover's own keys, as files of other writers have none.

    .cache/venv-test/bin/python tests/reference/make_mmproj.py
"""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).resolve().parents[1] / "data" / "vision" / "three_tiles"

# By the names of the Hugging Face folder; {} is the layer.
WHOLE = {
    "vision_model.class_embedding": "v.class_embd",
    "vision_model.positional_embedding_vlm": "v.position_embd.weight",
    "vision_model.patch_embedding.linear.weight": "v.patch_embd.weight",
    "vision_model.layernorm_pre.weight": "v.pre_ln.weight",
    "vision_model.layernorm_pre.bias": "v.pre_ln.bias",
    "vision_model.layernorm_post.weight": "v.post_ln.weight",
    "vision_model.layernorm_post.bias": "v.post_ln.bias",
    "vision_model.vision_adapter.mlp.fc1.weight": "mm.model.mlp.1.weight",
    "vision_model.vision_adapter.mlp.fc2.weight": "mm.model.mlp.2.weight",
    "multi_modal_projector.linear_1.weight": "mm.model.fc.weight",
}
LAYER = {
    "input_layernorm": "v.blk.{}.ln1",
    "post_attention_layernorm": "v.blk.{}.ln2",
    "self_attn.q_proj": "v.blk.{}.attn_q",
    "self_attn.k_proj": "v.blk.{}.attn_k",
    "self_attn.v_proj": "v.blk.{}.attn_v",
    "self_attn.o_proj": "v.blk.{}.attn_out",
    "mlp.fc1": "v.blk.{}.ffn_up",
    "mlp.fc2": "v.blk.{}.ffn_down",
}


def main():
    config = json.loads((FOLDER / "config.json").read_text())
    eyes = config["vision_config"]
    weights = load_file(FOLDER / "model.safetensors")
    writer = gguf.GGUFWriter(FOLDER / "mmproj.gguf", "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "llama4")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": eyes["image_size"],
        "patch_size": eyes["patch_size"],
        "embedding_length": eyes["hidden_size"],
        "feed_forward_length": eyes["intermediate_size"],
        "block_count": eyes["num_hidden_layers"],
        "attention.head_count": eyes["num_attention_heads"],
        "projection_dim": config["text_config"]["hidden_size"],
        "projector.scale_factor": 2,
    }.items():
        writer.add_uint32("clip.vision." + key, value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    names = dict(WHOLE)
    for layer in range(eyes["num_hidden_layers"]):
        for theirs, ours in LAYER.items():
            for part in (".weight", ".bias"):
                name = f"vision_model.model.layers.{layer}.{theirs}{part}"
                names[name] = ours.format(layer) + part
    for theirs, ours in names.items():
        found = [n for n in (theirs, "model." + theirs) if n in weights]
        writer.add_tensor(ours, np.ascontiguousarray(weights[found[0]].astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
