#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "formats/gguf.h"
#include "model/config.h"
#include "tensor/dequantize.h"

namespace drover {
namespace {

// What the family does where a file says nothing (spec sections 1.1 and 9.2).
constexpr int64_t kFamilyChunk = 8192;
constexpr int64_t kFamilyNopeInterval = 4;
constexpr uint64_t kMostLayers = 4096;

// Reads "<architecture>.<key>".
class Keys {
 public:
  explicit Keys(const GgufFile& file)
      : file_(file), prefix_(std::string(file.required_string("general.architecture")) + ".") {}

  std::string name(std::string_view key) const { return prefix_ + std::string(key); }

  int64_t required(std::string_view key) const {
    return size(name(key), file_.required_unsigned(name(key)));
  }
  std::optional<int64_t> optional(std::string_view key) const {
    const auto value = file_.unsigned_value(name(key));
    return value ? std::optional(size(name(key), *value)) : std::nullopt;
  }
  // Some writers give a value per layer; the family has one for all.
  int64_t uniform(std::string_view key) const {
    const GgufValue* value = file_.find(name(key));
    if (value == nullptr || value->type() != GgufType::kArray) return required(key);
    const auto values = *file_.signed_array(name(key));
    if (values.empty() ||
        std::any_of(values.begin(), values.end(), [&](int64_t v) { return v != values.front(); })) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: '{}': expected one value for all layers, got several", file_.path(),
                  name(key));
    }
    if (values.front() < 0) size(name(key), ~uint64_t{0});
    return values.front();
  }

 private:
  int64_t size(const std::string& key, uint64_t value) const {
    if (value > (uint64_t{1} << 40)) {
      throw_error(ErrorKind::kBadData, "{}: '{}': expected a size, got {}", file_.path(), key,
                  value);
    }
    return static_cast<int64_t>(value);
  }

  const GgufFile& file_;
  std::string prefix_;
};

// A list of one truth per layer under a key of our own, if the file has it.
std::optional<std::vector<bool>> layer_list(const GgufFile& file, const std::string& key,
                                            size_t layers) {
  auto list = file.bool_array(key);
  if (list && list->size() != layers) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected {} entries, one per layer, got {}",
                file.path(), key, layers, list->size());
  }
  return list;
}

void read_llama4_layers(const GgufFile& file, const Keys& keys, ModelConfig& c) {
  const int64_t step = keys.optional("interleave_moe_layer_step").value_or(1);
  const bool full = keys.optional("attention.sliding_window") == 0;
  const int64_t interval = full ? 0 : kFamilyNopeInterval;
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const int64_t number = static_cast<int64_t>(i) + 1;
    c.layers[i].rope = interval == 0 || number % interval != 0;
    c.layers[i].chunked = !full && c.layers[i].rope;
    c.layers[i].moe = step > 0 && c.experts > 0 && number % step == 0;
  }
  c.chunk = full ? 0 : keys.optional("attention.chunk_size").value_or(kFamilyChunk);
  if (const auto list = layer_list(file, "drover.rope_layers", c.layers.size())) {
    for (size_t i = 0; i < list->size(); ++i) c.layers[i].rope = (*list)[i];
  }
  if (const auto list = layer_list(file, "drover.chunked_layers", c.layers.size())) {
    for (size_t i = 0; i < list->size(); ++i) c.layers[i].chunked = (*list)[i];
  }
  if (const auto list = layer_list(file, "drover.moe_layers", c.layers.size())) {
    for (size_t i = 0; i < list->size(); ++i) c.layers[i].moe = (*list)[i];
  }
  c.qk_norm = file.bool_value(keys.name("use_qk_norm")).value_or(c.experts != 128);
  c.temperature_tuning = file.bool_value("drover.attention.temperature_tuning").value_or(true);
  c.floor_scale =
      static_cast<float>(file.float_value("drover.attention.floor_scale").value_or(kFamilyChunk));
  c.attn_scale =
      static_cast<float>(file.float_value("drover.attention.temperature_scale").value_or(0.1));
}

void read_rope(const GgufFile& file, const Keys& keys, ModelConfig& c) {
  c.rope_theta = file.float_value(keys.name("rope.freq_base")).value_or(10000.0);
  const int64_t rotated = keys.optional("rope.dimension_count").value_or(c.head_dim);
  if (rotated != c.head_dim) {
    throw_error(ErrorKind::kUnsupported,
                "{}: '{}': expected the head dimension {}, got {} (partial rotation)", file.path(),
                keys.name("rope.dimension_count"), c.head_dim, rotated);
  }
  const std::string_view scaling =
      file.string_value(keys.name("rope.scaling.type")).value_or("none");
  if (scaling == "linear") {
    c.rope_scaling.kind = RopeScaling::Kind::kLinear;
    c.rope_scaling.factor = file.float_value(keys.name("rope.scaling.factor")).value_or(1.0);
  } else if (scaling != "none") {
    throw_error(ErrorKind::kUnsupported, "{}: rope scaling '{}': expected none or linear",
                file.path(), printable(scaling));
  }
  set_rope_frequencies(c);

  const NamedTensor* factors = file.find_tensor("rope_freqs.weight");
  if (factors == nullptr) return;
  if (factors->shape != std::vector<int64_t>{c.head_dim / 2} || factors->type != DType::kF32) {
    throw_error(ErrorKind::kBadData, "{}: tensor 'rope_freqs.weight': expected [{}] f32",
                file.path(), c.head_dim / 2);
  }
  std::vector<float> divisors(factors->shape[0]);
  dequantize_row(DType::kF32, factors->data, divisors);
  for (size_t k = 0; k < divisors.size(); ++k) {
    if (!(divisors[k] > 0)) {
      throw_error(ErrorKind::kBadData,
                  "{}: tensor 'rope_freqs.weight': expected positive numbers, got {}", file.path(),
                  divisors[k]);
    }
    c.rope_frequencies[k] /= divisors[k];
  }
  c.rope_scaling.kind = RopeScaling::Kind::kFactors;
}

}  // namespace

ModelConfig config_from_gguf(const GgufFile& file) {
  ModelConfig c;
  c.architecture = std::string(file.required_string("general.architecture"));
  if (c.architecture != "llama4" && c.architecture != "llama") {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: architecture '{}': expected llama4 or llama", file.path(),
                            printable(c.architecture)),
                "Drover runs the Llama 4 family and dense Llama models");
  }
  const Keys keys(file);
  c.name = std::string(file.string_value("general.name").value_or(""));
  const NamedTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    throw_error(ErrorKind::kBadData, "{}: expected a tensor 'token_embd.weight' of two dimensions",
                file.path());
  }
  c.vocab = embedding->shape[0];
  c.hidden = keys.required("embedding_length");
  const int64_t layers = keys.required("block_count");
  if (layers < 1 || static_cast<uint64_t>(layers) > kMostLayers) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected 1 to {}, got {}", file.path(),
                keys.name("block_count"), kMostLayers, layers);
  }
  c.layers.assign(static_cast<size_t>(layers), LayerConfig{.chunked = false});
  c.heads = keys.uniform("attention.head_count");
  c.kv_heads = file.has(keys.name("attention.head_count_kv"))
                   ? keys.uniform("attention.head_count_kv")
                   : c.heads;
  if (c.heads == 0) {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected at least 1, got 0", file.path(),
                keys.name("attention.head_count"));
  }
  c.head_dim = keys.optional("attention.key_length").value_or(c.hidden / c.heads);
  const int64_t value_dim = keys.optional("attention.value_length").value_or(c.head_dim);
  if (value_dim != c.head_dim) {
    throw_error(ErrorKind::kUnsupported, "{}: expected keys and values of one size, got {} and {}",
                file.path(), c.head_dim, value_dim);
  }
  c.context = keys.required("context_length");
  c.norm_eps =
      static_cast<float>(file.required_float(keys.name("attention.layer_norm_rms_epsilon")));
  c.tied_embeddings = file.find_tensor("output.weight") == nullptr;
  c.experts = keys.optional("expert_count").value_or(0);

  if (c.architecture == "llama4") {
    c.experts_used = keys.optional("expert_used_count").value_or(c.experts > 0 ? 1 : 0);
    c.dense_width = keys.uniform("feed_forward_length");
    c.expert_width = keys.optional("expert_feed_forward_length").value_or(0);
    read_llama4_layers(file, keys, c);
  } else {
    if (c.experts > 0) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: expected a dense llama, got one with {} experts (Mixtral)", file.path(),
                  c.experts);
    }
    c.dense_width = keys.uniform("feed_forward_length");
  }
  if (c.head_dim >= 2 && c.head_dim <= kMaxHeadDim) read_rope(file, keys, c);
  drop_unused(c);
  validate(c, file.path());
  return c;
}

}  // namespace drover
