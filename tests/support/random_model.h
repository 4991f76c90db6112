// A model whose rows are whole blocks of every type, which no golden's are.
#pragma once

#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/file_writer.h"
#include "formats/safetensors.h"

namespace drover::testing {

// A Llama 4 in miniature whose rows are whole blocks of every type: Hugging Face folder, f32,
// normal weights scaled so that activations keep their size.
inline void write_random_model(const std::filesystem::path& folder) {
  std::filesystem::create_directory(folder);
  write_file(folder / "config.json", R"({"model_type": "llama4_text", "vocab_size": 64,
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 256, "intermediate_size_mlp": 256, "num_local_experts": 2,
    "moe_layers": [1, 3], "attention_chunk_size": 16, "floor_scale": 8, "max_position_embeddings": 64})");
  std::vector<TensorSpec> tensors = {{"model.embed_tokens.weight", DType::kF32, {64, 256}},
                                     {"model.norm.weight", DType::kF32, {256}},
                                     {"lm_head.weight", DType::kF32, {64, 256}}};
  for (int layer = 0; layer < 4; ++layer) {
    const auto add = [&](std::string_view part, std::vector<int64_t> shape) {
      tensors.push_back({fmt::format("model.layers.{}.{}", layer, part), DType::kF32, shape});
    };
    add("input_layernorm.weight", {256});
    add("post_attention_layernorm.weight", {256});
    add("self_attn.q_proj.weight", {256, 256});
    add("self_attn.k_proj.weight", {128, 256});
    add("self_attn.v_proj.weight", {128, 256});
    add("self_attn.o_proj.weight", {256, 256});
    const bool moe = layer % 2 == 1;
    const std::string network = moe ? "feed_forward.shared_expert." : "feed_forward.";
    for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
      add(network + part + ".weight", {256, 256});
    }
    if (!moe) continue;
    add("feed_forward.router.weight", {2, 256});
    add("feed_forward.experts.gate_up_proj", {2, 256, 512});
    add("feed_forward.experts.down_proj", {2, 256, 256});
  }
  write_safetensors(
      folder / "model.safetensors", tensors, {}, [&](size_t i, const TensorSink& sink) {
        std::mt19937 random(static_cast<uint32_t>(i));
        const bool norm = tensors[i].shape.size() == 1;
        std::normal_distribution<float> normal(norm ? 1.0f : 0.0f, norm ? 0.1f : 1.0f / 16);
        std::vector<float> values(*tensor_bytes(DType::kF32, tensors[i].shape) / sizeof(float));
        for (float& value : values) value = normal(random);
        sink(std::as_bytes(std::span(values)));
      });
}

}  // namespace drover::testing
