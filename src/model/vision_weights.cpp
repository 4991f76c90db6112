#include "model/vision_weights.h"

#include <functional>
#include <set>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/huggingface.h"
#include "tensor/dequantize.h"

namespace drover {
namespace {

// One tensor: its names in GGUF and in Hugging Face's checkpoints, its shape, and where it goes.
struct Slot {
  std::string name;
  std::string huggingface;
  std::vector<int64_t> shape;
  WeightView* matrix = nullptr;  // one of the two
  const float** floats = nullptr;
  bool widened = false;  // the matrix becomes f32
};

// Every tensor of an encoder, in file order (spec sections 4.1 and 9.4).
std::vector<Slot> slots(const VisionConfig& c, VisionWeights& w) {
  w.layers.resize(static_cast<size_t>(c.layer_count));
  const int64_t W = c.hidden, F = c.width, A = c.adapter;
  std::vector<Slot> out;
  const auto matrix = [&](std::string name, std::string other, int64_t rows, int64_t cols,
                          WeightView& to) {
    out.push_back({std::move(name), std::move(other), {rows, cols}, &to, nullptr});
  };
  const auto floats = [&](std::string name, std::string other, std::vector<int64_t> shape,
                          const float*& to) {
    out.push_back({std::move(name), std::move(other), std::move(shape), nullptr, &to});
  };
  const auto norm = [&](const std::string& name, const std::string& other, LayerNormWeights& to) {
    floats(name + ".weight", other + ".weight", {W}, to.weight);
    floats(name + ".bias", other + ".bias", {W}, to.bias);
  };
  const auto map = [&](const std::string& name, const std::string& other, int64_t rows,
                       int64_t cols, BiasedMap& to) {
    matrix(name + ".weight", other + ".weight", rows, cols, to.weight);
    floats(name + ".bias", other + ".bias", {rows}, to.bias);
  };

  // Writers store it in other types than the rest, and its products are too few to care: it meets
  // exact pixels in exact f32, so that every file of a model gives the same bits.
  matrix("v.patch_embd.weight", "vision_model.patch_embedding.linear.weight", W, c.patch_values(),
         w.patch_embedding);
  out.back().widened = true;
  floats("v.class_embd", "vision_model.class_embedding", {W}, w.class_embedding);
  floats("v.position_embd.weight", "vision_model.positional_embedding_vlm", {c.rows(), W},
         w.position_embedding);
  norm("v.pre_ln", "vision_model.layernorm_pre", w.pre_norm);
  for (int64_t i = 0; i < c.layer_count; ++i) {
    VisionLayerWeights& layer = w.layers[static_cast<size_t>(i)];
    const std::string name = fmt::format("v.blk.{}.", i);
    const std::string other = fmt::format("vision_model.model.layers.{}.", i);
    norm(name + "ln1", other + "input_layernorm", layer.attention_norm);
    map(name + "attn_q", other + "self_attn.q_proj", W, W, layer.wq);
    map(name + "attn_k", other + "self_attn.k_proj", W, W, layer.wk);
    map(name + "attn_v", other + "self_attn.v_proj", W, W, layer.wv);
    map(name + "attn_out", other + "self_attn.o_proj", W, W, layer.wo);
    norm(name + "ln2", other + "post_attention_layernorm", layer.ffn_norm);
    map(name + "ffn_up", other + "mlp.fc1", F, W, layer.fc1);
    map(name + "ffn_down", other + "mlp.fc2", W, F, layer.fc2);
  }
  norm("v.post_ln", "vision_model.layernorm_post", w.post_norm);
  matrix("mm.model.mlp.1.weight", "vision_model.vision_adapter.mlp.fc1.weight", A, c.joined(),
         w.adapter_fc1);
  matrix("mm.model.mlp.2.weight", "vision_model.vision_adapter.mlp.fc2.weight", A, A,
         w.adapter_fc2);
  matrix("mm.model.fc.weight", "multi_modal_projector.linear_1.weight", c.embedding, A,
         w.projector);
  return out;
}

void check(const Slot& slot, const NamedTensor* tensor, const std::string& name,
           const std::string& source) {
  if (tensor == nullptr) {
    throw_error(ErrorKind::kBadData, "{}: expected a tensor '{}' {}, got none", source, name,
                shape_text(slot.shape));
  }
  if (tensor->shape != slot.shape) {
    throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected {}, got {}", source, name,
                shape_text(slot.shape), shape_text(tensor->shape));
  }
  if (!dtype_info(tensor->type).is_weight) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor '{}': expected a weight type, got {}", source,
                name, dtype_name(tensor->type));
  }
}

void fill(VisionWeights& weights, const Slot& slot, const NamedTensor& tensor) {
  weights.bytes += tensor.bytes;
  if (slot.matrix != nullptr && !slot.widened) {
    *slot.matrix = {tensor.data, tensor.type, slot.shape[0], slot.shape[1]};
    return;
  }
  const int64_t cols = slot.shape.back(), rows = slot.shape.size() == 2 ? slot.shape[0] : 1;
  AlignedArray<float> copy(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(tensor.type, tensor.data + r * row_bytes(tensor.type, cols),
                   copy.span().subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols)));
  }
  if (slot.matrix != nullptr) {
    *slot.matrix = {reinterpret_cast<const std::byte*>(copy.data()), DType::kF32, rows, cols};
  }
  if (slot.floats != nullptr) *slot.floats = copy.data();
  weights.owned.push_back(std::move(copy));
}

// What stands before the encoder's names in a folder: the reference's classes have written several.
std::optional<std::string_view> prefix_in(const HuggingfaceFolder& folder) {
  for (const std::string_view prefix : {"", "model."}) {
    for (const NamedTensor& tensor : folder.weights.tensors()) {
      if (tensor.name.starts_with(prefix) &&
          tensor.name.substr(prefix.size()).starts_with("vision_model.")) {
        return prefix;
      }
    }
  }
  return std::nullopt;
}

const NamedTensor* find(const HuggingfaceFolder& folder, std::string_view prefix,
                        const Slot& slot) {
  return folder.weights.find(std::string(prefix) + slot.huggingface);
}

}  // namespace

bool is_vision_tensor(std::string_view name) {
  return name.starts_with("v.") || name.starts_with("mm.");
}

Vision make_vision(const VisionConfig& config, const FindTensor& find) {
  Vision vision{.config = config, .weights = {}};
  for (const Slot& slot : slots(config, vision.weights)) {
    fill(vision.weights, slot, find(slot.name, slot.shape));
  }
  return vision;
}

std::vector<ExpectedTensor> expected_vision_tensors(const VisionConfig& config) {
  VisionWeights ignored;
  std::vector<ExpectedTensor> out;
  for (Slot& slot : slots(config, ignored)) {
    out.push_back({std::move(slot.name), std::move(slot.shape), std::move(slot.huggingface)});
  }
  return out;
}

std::optional<Vision> vision_from_gguf(const GgufFile& file, std::optional<int64_t> embedding) {
  const auto config = vision_config_from_gguf(file, embedding);
  if (!config) return std::nullopt;
  Vision vision{.config = *config, .weights = {}};
  std::set<std::string_view> used;
  for (const Slot& slot : slots(*config, vision.weights)) {
    const NamedTensor* tensor = file.find_tensor(slot.name);
    check(slot, tensor, slot.name, file.path());
    fill(vision.weights, slot, *tensor);
    used.insert(tensor->name);
  }
  for (const NamedTensor& tensor : file.tensors()) {
    if (is_vision_tensor(tensor.name) && !used.contains(tensor.name)) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor '{}' has no place in a llama4 encoder",
                  file.path(), printable(tensor.name));
    }
  }
  return vision;
}

std::vector<TensorSource> vision_tensors(const HuggingfaceFolder& folder, const VisionConfig& c) {
  const std::string source = folder.path.string();
  const std::string_view prefix = prefix_in(folder).value_or("");
  VisionWeights ignored;
  std::vector<TensorSource> out;
  std::set<std::string_view> used;
  for (const Slot& slot : slots(c, ignored)) {
    const NamedTensor* tensor = find(folder, prefix, slot);
    check(slot, tensor, std::string(prefix) + slot.huggingface, source);
    used.insert(tensor->name);
    out.push_back({.name = slot.name, .shape = slot.shape, .from = tensor});
  }
  for (const NamedTensor& tensor : folder.weights.tensors()) {
    if (!tensor.name.starts_with(prefix)) continue;
    const std::string_view name = tensor.name.substr(prefix.size());
    const bool ours = name.starts_with("vision_model.") || name.starts_with("multi_modal_");
    if (ours && !used.contains(tensor.name) && !name.ends_with("rotary_embedding.freqs_ci")) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor '{}' has no place in a llama4 encoder",
                  source, printable(tensor.name));
    }
  }
  return out;
}

std::optional<Vision> vision_from_huggingface(const HuggingfaceFolder& folder, int64_t embedding) {
  // A text-only folder may still carry the whole configuration.
  if (!prefix_in(folder)) return std::nullopt;
  const auto config = vision_config_from_huggingface(folder, embedding);
  if (!config) return std::nullopt;
  Vision vision{.config = *config, .weights = {}};
  const std::vector<TensorSource> sources = vision_tensors(folder, *config);
  const std::vector<Slot> places = slots(*config, vision.weights);
  for (size_t i = 0; i < places.size(); ++i) fill(vision.weights, places[i], *sources[i].from);
  return vision;
}

}  // namespace drover
