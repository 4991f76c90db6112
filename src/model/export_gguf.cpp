#include "model/export_gguf.h"

#include <algorithm>
#include <cmath>

#include <boost/json.hpp>

#include "base/error.h"
#include "formats/gguf_writer.h"
#include "model/config.h"
#include "model/tensor_table.h"
#include "tensor/dequantize.h"
#include "tensor/quantize.h"

namespace drover {
namespace {

// The type that a tensor is written in (spec section 9.3, converter type rule).
DType stored_type(const TensorSource& tensor, DType type) {
  if (tensor.shape.size() == 1 || tensor.name.find("ffn_gate_inp") != std::string::npos) {
    return DType::kF32;
  }
  const auto fits = [&](DType t) { return tensor.cols() % dtype_info(t).block_values == 0; };
  if (fits(type)) return type;
  DType next = DType::kF16;
  if (type == DType::kQ4_K) next = DType::kQ4_1;
  if (type == DType::kQ5_K) next = DType::kQ5_1;
  if (type == DType::kQ6_K) next = DType::kQ8_0;
  return fits(next) ? next : DType::kF16;
}

// general.file_type, where the format has a number for it.
uint32_t file_type(DType type) {
  switch (type) {
    case DType::kF32: return 0;
    case DType::kF16: return 1;
    case DType::kQ4_0: return 2;
    case DType::kQ4_1: return 3;
    case DType::kQ8_0: return 7;
    case DType::kQ5_0: return 8;
    case DType::kQ5_1: return 9;
    case DType::kQ4_K: return 14;
    case DType::kQ5_K: return 16;
    case DType::kQ6_K: return 18;
    case DType::kBF16: return 32;
    default: return 1024;  // "guessed" in the words of other writers
  }
}

std::vector<bool> per_layer(const ModelConfig& c, bool LayerConfig::* member) {
  std::vector<bool> out;
  for (const LayerConfig& layer : c.layers) out.push_back(layer.*member);
  return out;
}

// Spec section 9.2, and the keys of our own that carry what the family's files leave to defaults.
void write_config(GgufWriter& out, const ModelConfig& c) {
  const std::string prefix = c.architecture + ".";
  const auto size = [&](std::string_view key, int64_t value) {
    out.set(prefix + std::string(key), static_cast<uint32_t>(value));
  };
  size("vocab_size", c.vocab);
  size("context_length", std::min<int64_t>(c.context, ~uint32_t{0}));
  size("embedding_length", c.hidden);
  size("block_count", c.layer_count());
  size("feed_forward_length", c.dense_width > 0 ? c.dense_width : c.expert_width);
  size("attention.head_count", c.heads);
  size("attention.head_count_kv", c.kv_heads);
  size("attention.key_length", c.head_dim);
  size("attention.value_length", c.head_dim);
  size("rope.dimension_count", c.head_dim);
  out.set(prefix + "attention.layer_norm_rms_epsilon", c.norm_eps);
  out.set(prefix + "rope.freq_base", static_cast<float>(c.rope_theta));
  if (c.rope_scaling.kind == RopeScaling::Kind::kLinear) {
    out.set(prefix + "rope.scaling.type", std::string("linear"));
    out.set(prefix + "rope.scaling.factor", static_cast<float>(c.rope_scaling.factor));
  }
  if (c.architecture != "llama4") return;

  // Other readers take the step for the list of MoE layers; where they differ, the list holds.
  int64_t step = 0;
  for (int64_t i = 0; i < c.layer_count() && step == 0; ++i) {
    if (c.layers[i].moe) step = i + 1;
  }
  size("interleave_moe_layer_step", step);
  size("expert_count", c.experts);
  size("expert_used_count", c.experts_used);
  size("expert_feed_forward_length", c.expert_width);
  const auto all_global = std::none_of(c.layers.begin(), c.layers.end(),
                                       [](const LayerConfig& layer) { return layer.chunked; });
  if (all_global) size("attention.sliding_window", 0);
  if (!all_global) size("attention.chunk_size", c.chunk);
  out.set(prefix + "use_qk_norm", c.qk_norm);
  out.set("drover.attention.temperature_tuning", c.temperature_tuning);
  out.set("drover.attention.floor_scale", c.floor_scale);
  out.set("drover.attention.temperature_scale", c.attn_scale);
  out.set("drover.rope_layers", per_layer(c, &LayerConfig::rope));
  out.set("drover.chunked_layers", per_layer(c, &LayerConfig::chunked));
  out.set("drover.moe_layers", per_layer(c, &LayerConfig::moe));
}

}  // namespace
}  // namespace drover
