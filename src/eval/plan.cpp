#include "eval/plan.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <fstream>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/huggingface.h"
#include "formats/json.h"
#include "kernels/matmul/matmul.h"
#include "model/tensor_table.h"
#include "model/vision_weights.h"

namespace drover {
namespace {

namespace fs = std::filesystem;

// N of "blk.N.part.weight", or -1.
int64_t layer_of(std::string_view tensor) {
  constexpr std::string_view kPrefix = "blk.";
  int64_t layer = -1;
  if (tensor.starts_with(kPrefix)) {
    std::from_chars(tensor.data() + kPrefix.size(), tensor.data() + tensor.size(), layer);
  }
  return layer;
}

bool is_part(std::string_view tensor, std::string_view part) {
  return tensor.find(part) != std::string_view::npos;
}

std::vector<PlannedTensor> in_type(const PlannedModel& model, const Mixture& mixture) {
  std::vector<PlannedTensor> out;
  const auto add = [&](ExpectedTensor& tensor) {
    const DType type = mixture_type(mixture, model.config, tensor.name, tensor.shape);
    out.push_back({std::move(tensor.name), std::move(tensor.shape), type});
  };
  for (ExpectedTensor& tensor : expected_tensors(model.config)) add(tensor);
  if (model.vision) {
    for (ExpectedTensor& tensor : expected_vision_tensors(*model.vision)) add(tensor);
  }
  return out;
}

Mixture named_mixture(const boost::json::object& config, const std::string& source) {
  const JsonFields top(config, source);
  const JsonFields text = top.fields("text_config").value_or(top);
  for (const JsonFields& fields : {text, top}) {
    for (const std::string_view key : {"dtype", "torch_dtype"}) {
      const std::string_view name = fields.text(key).value_or("");
      if (name == "float32") return DType::kF32;
      if (name == "float16") return DType::kF16;
    }
  }
  return DType::kBF16;
}

PlannedModel from_config(HuggingfaceFolder folder, const std::string& source) {
  PlannedModel out;
  out.config = config_from_huggingface(folder.config, source);
  out.vision = vision_config_from_huggingface(folder, out.config.hidden);
  out.tensors = in_type(out, named_mixture(folder.config, source));
  return out;
}

bool has_weights(const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") return true;
  }
  return fs::exists(folder / "model.safetensors.index.json");
}

int64_t last_global_layer(const ModelConfig& config) {
  for (int64_t i = config.layer_count() - 1; i >= 0; --i) {
    if (!config.layers[i].chunked) return i;
  }
  return -1;
}

// Tokens at the end of a prompt whose results someone reads, once the last global layer has its
// keys and values.
int64_t live_tokens(const ModelConfig& config, int64_t tokens) {
  if (last_global_layer(config) == config.layer_count() - 1) return std::min<int64_t>(1, tokens);
  return tokens == 0 ? 0 : (tokens - 1) % config.chunk + 1;
}

double triangle(double n) { return n * (n + 1) / 2; }

// The positions that the last `live` of `tokens` tokens attend to on one layer, added up.
double attended(const ModelConfig& config, bool chunked, int64_t tokens, int64_t live) {
  const double n = static_cast<double>(tokens), before = static_cast<double>(tokens - live);
  if (!chunked) return triangle(n) - triangle(before);
  const auto up_to = [&](int64_t end) {
    return static_cast<double>(end / config.chunk) * triangle(static_cast<double>(config.chunk)) +
           triangle(static_cast<double>(end % config.chunk));
  };
  return up_to(tokens) - up_to(tokens - live);
}

// Multiply-adds of one token with one position on one layer: scores and values.
double attention_products(const ModelConfig& config) {
  return 2.0 * static_cast<double>(config.heads * config.head_dim);
}

// Whether a token is multiplied with it, and not only looks a row up.
bool is_matrix(const PlannedModel& model, const PlannedTensor& tensor) {
  if (tensor.shape.size() < 2 || is_vision_tensor(tensor.name)) return false;
  return tensor.name != "token_embd.weight" || model.config.tied_embeddings;
}

bool is_output(const PlannedModel& model, const PlannedTensor& tensor) {
  return tensor.name == (model.config.tied_embeddings ? "token_embd.weight" : "output.weight");
}

// Adds the products of `tokens` tokens with a tensor, which is read once in each of `passes`.
void multiply(PassWork& work, const PlannedModel& model, const PlannedTensor& tensor, Isa isa,
              int64_t tokens, int64_t passes) {
  const bool experts = is_part(tensor.name, "_exps.");
  const double each = experts ? static_cast<double>(model.config.experts_used) : 1;
  const int64_t rows = tensor.shape[tensor.shape.size() - 2], cols = tensor.shape.back();
  const double count = static_cast<double>(tokens);
  work.multiply(isa, WeightView{nullptr, tensor.type, rows, cols}, count * each, /*rounded=*/false);
  double bytes = static_cast<double>(tensor.bytes());
  if (experts && passes > 0) {
    // Of the experts no more are read than tokens choose.
    const double chosen = count / static_cast<double>(passes) * each;
    bytes *= std::min(1.0, chosen / static_cast<double>(model.config.experts));
  }
  work.bytes += bytes * static_cast<double>(passes);
}

Isa isa_of(const MachineLimits& limits) { return limits.bf16_rate > 0 ? Isa::kAmx : Isa::kAvx512; }

// Seconds of products at the machine's rates; nothing where one of them is missing.
std::optional<double> multiplying_seconds(const PassWork& work, const MachineLimits& limits) {
  double seconds = 0;
  for (const auto& [products, rate] : {std::pair(work.int8_products, limits.int8_rate),
                                       std::pair(work.float_products, limits.float_rate),
                                       std::pair(work.bf16_products, limits.bf16_rate)}) {
    if (products == 0) continue;
    if (!(rate > 0)) return std::nullopt;
    seconds += 2 * products / rate;
  }
  return seconds;
}

int64_t number_in(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : INT64_MAX;  // "max" is no number
}

}  // namespace

int64_t PlannedTensor::values() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

int64_t PlannedTensor::bytes() const {
  const int64_t cols = shape.empty() ? 1 : shape.back();
  return cols == 0 ? 0 : values() / cols * row_bytes(type, cols);
}

int64_t PlannedModel::values() const {
  int64_t n = 0;
  for (const PlannedTensor& tensor : tensors) n += tensor.values();
  return n;
}

int64_t PlannedModel::bytes() const {
  int64_t n = 0;
  for (const PlannedTensor& tensor : tensors) n += tensor.bytes();
  return n;
}

int64_t PlannedModel::vision_bytes() const {
  int64_t n = 0;
  for (const PlannedTensor& t : tensors) n += is_vision_tensor(t.name) ? t.bytes() : 0;
  return n;
}

std::map<DType, int64_t> PlannedModel::bytes_by_type() const {
  std::map<DType, int64_t> out;
  for (const PlannedTensor& tensor : tensors) out[tensor.type] += tensor.bytes();
  return out;
}

PlannedModel planned_model(const fs::path& path) {
  PlannedModel out;
  const auto add = [&](std::string_view name, const std::vector<int64_t>& shape, DType type) {
    out.tensors.push_back({std::string(name), shape, type});
  };
  if (fs::is_directory(path)) {
    if (!has_weights(path)) {
      return from_config(HuggingfaceFolder::open_config_only(path),
                         (path / "config.json").string());
    }
    const HuggingfaceFolder folder = HuggingfaceFolder::open(path);
    out.config = config_from_huggingface(folder.config, (path / "config.json").string());
    out.vision = vision_config_from_huggingface(folder, out.config.hidden);
    for (const TensorSource& t : decoder_tensors(folder, out.config)) {
      add(t.name, t.shape, t.from->type);
    }
    if (out.vision) {
      for (const TensorSource& t : vision_tensors(folder, *out.vision)) {
        add(t.name, t.shape, t.from->type);
      }
    }
  } else if (path.extension() == ".json") {
    HuggingfaceFolder folder;
    folder.path = path.parent_path();
    folder.config = read_json_object(path);
    return from_config(std::move(folder), path.string());
  } else {
    const GgufFile file = GgufFile::open(path);
    out.config = config_from_gguf(file);
    out.vision = vision_config_from_gguf(file, out.config.hidden);
    for (const NamedTensor& t : file.tensors()) add(t.name, t.shape, t.type);
  }
  out.has_weights = true;
  return out;
}

PlannedModel in_mixture(PlannedModel model, const Mixture& mixture) {
  model.tensors = in_type(model, mixture);
  return model;
}

int64_t activation_bytes(const PlannedModel& model, int64_t batch) {
  const ModelConfig& c = model.config;
  const int64_t T = batch, copies = T * (1 + c.experts_used);
  const int64_t inner = std::max(T * c.dense_width, copies * c.expert_width);
  // As Decoder::plan takes them; then one row of logits.
  int64_t floats = T * c.hidden + 2 * copies * c.hidden;  // h, normed, out
  floats += 2 * T * c.head_dim * (c.heads + c.kv_heads);  // q, mixed, k, v
  floats += 2 * inner + T * c.experts + c.vocab;          // gate, up, router
  const bool quantised = std::any_of(model.tensors.begin(), model.tensors.end(), [](auto& t) {
    return is_quantized(t.type) && !is_vision_tensor(t.name);
  });
  // The 8-bit form of the widest rows: 64 bytes for 32 values.
  const int64_t widest = std::max({copies * c.hidden, T * c.heads * c.head_dim, inner});
  int64_t bytes = 4 * floats + (quantised ? 2 * widest : 0);
  if (model.vision) {
    const VisionConfig& v = *model.vision;
    constexpr int64_t kTiles = 4;  // that the encoder takes together
    const int64_t rows = kTiles * v.rows();
    const KvPages pages{nullptr, DType::kF32, v.heads, v.head_dim()};
    const int64_t per_tile = (v.rows() + kPageTokens - 1) / kPageTokens;
    const int64_t of_rows = rows * (6 * v.hidden + v.width + v.patch_values());
    const int64_t of_tokens = kTiles * v.tile_tokens() * (v.joined() + 2 * v.adapter + v.embedding);
    bytes += 4 * (of_rows + of_tokens) + kTiles * per_tile * pages.page_bytes();
  }
  return bytes;
}

CacheBytes cache_bytes(const ModelConfig& config, DType type, int64_t context) {
  const CacheLayout layout = config.cache_layout(type);
  const int64_t positions = (context + kPageTokens - 1) / kPageTokens * kPageTokens;
  return {positions * layout.global_bytes_per_token(), layout.local_bytes(context)};
}

int64_t longest_context(const ModelConfig& config, DType type, int64_t bytes) {
  int64_t fits = 0, too_long = config.context + 1;
  while (too_long - fits > 1) {
    const int64_t middle = fits + (too_long - fits) / 2;
    (cache_bytes(config, type, middle).all() <= bytes ? fits : too_long) = middle;
  }
  return fits;
}

PrefillWork prefill_work(const PlannedModel& model, int64_t tokens, int64_t batch, bool dead_work,
                         Isa isa) {
  const ModelConfig& c = model.config;
  const int64_t last = dead_work ? c.layer_count() : last_global_layer(c);
  const int64_t live = live_tokens(c, tokens);
  PrefillWork out;
  for (const PlannedTensor& tensor : model.tensors) {
    if (!is_matrix(model, tensor)) continue;
    const int64_t layer = layer_of(tensor.name);
    int64_t count = tokens;
    if (is_output(model, tensor)) {
      count = std::min<int64_t>(1, tokens);
    } else if (layer > last) {
      count = live;
    } else if (layer == last && !is_part(tensor.name, ".attn_k.") &&
               !is_part(tensor.name, ".attn_v.")) {
      count = live;
    }
    multiply(out.weights, model, tensor, isa, count, (count + batch - 1) / batch);
  }
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    const int64_t count = i >= last ? live : tokens;
    out.attention += attention_products(c) * attended(c, c.layers[i].chunked, tokens, count);
  }
  return out;
}

std::optional<double> prefill_seconds(const PlannedModel& model, int64_t tokens, int64_t batch,
                                      bool dead_work, const MachineLimits& limits) {
  const PrefillWork work = prefill_work(model, tokens, batch, dead_work, isa_of(limits));
  const auto computing = multiplying_seconds(work.weights, limits);
  if (!computing || !(limits.bandwidth > 0) || !(limits.float_rate > 0)) return std::nullopt;
  const double weights = std::max(*computing / kPrefillEfficiency,
                                  work.weights.bytes / (limits.bandwidth * kDecodeEfficiency));
  return weights + 2 * work.attention / (limits.float_rate * kAttentionEfficiency);
}

std::optional<double> decode_seconds(const PlannedModel& model, int64_t past, DType cache_type,
                                     const MachineLimits& limits) {
  if (!(limits.bandwidth > 0)) return std::nullopt;
  const ModelConfig& c = model.config;
  PassWork work;
  for (const PlannedTensor& tensor : model.tensors) {
    if (is_matrix(model, tensor)) multiply(work, model, tensor, isa_of(limits), 1, 1);
  }
  const double seen_local =
      static_cast<double>(past <= c.chunk ? past : c.chunk / 2);  // in the middle of a chunk
  const CacheLayout layout = c.cache_layout(cache_type);
  double positions = 0;
  for (const LayerConfig& layer : c.layers) {
    positions += layer.chunked ? seen_local : static_cast<double>(past);
  }
  const KvPages page{nullptr, cache_type, layout.kv_heads, layout.head_dim};
  const double cache = positions * static_cast<double>(page.page_bytes()) / kPageTokens;
  double attention = cache / (limits.bandwidth * kDecodeEfficiency);
  if (limits.float_rate > 0) {
    attention = std::max(attention, 2 * attention_products(c) * positions /
                                        (limits.float_rate * kAttentionEfficiency));
  }
  return work.bytes / (limits.bandwidth * kDecodeEfficiency) + attention;
}

int64_t needed_bytes(const PlannedModel& model, const Demand& d) {
  return model.bytes() + activation_bytes(model, d.batch) + kProgramBytes +
         cache_bytes(model.config, d.cache_type, d.context).all();
}

int64_t conversations(const PlannedModel& model, const Demand& d) {
  const int64_t one = cache_bytes(model.config, d.cache_type, d.context).all();
  const int64_t left = d.memory - (needed_bytes(model, d) - one);
  return left < 0 ? 0 : left / one;
}

std::vector<Change> changes_to_fit(const PlannedModel& model, const Demand& d) {
  std::vector<Change> out;
  const auto fits = [&](const PlannedModel& m, const Demand& changed) {
    return needed_bytes(m, changed) <= d.memory;
  };
  const auto in = [&](DType type) {
    Demand changed = d;
    changed.cache_type = type;
    return changed;
  };
  const Demand smaller_cache = in(DType::kI8);
  if (d.cache_type != DType::kI8 && fits(model, smaller_cache)) {
    out.push_back(
        {"--cache-type int8", "keys and values in 8 bits", needed_bytes(model, smaller_cache)});
  }
  // The largest type that is enough, by itself and else with the smaller cache.
  for (const Demand& demand : {d, smaller_cache}) {
    const bool cache_too = demand.cache_type != d.cache_type;
    bool found = false;
    for (const std::string_view name : {"q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"}) {
      const PlannedModel smaller = in_mixture(model, *mixture_from_name(name));
      if (smaller.bytes() >= model.bytes() || !fits(smaller, demand)) continue;
      out.push_back({fmt::format("--type {}{}", name, cache_too ? " --cache-type int8" : ""),
                     fmt::format("weights in {}{}", name, cache_too ? " and an int8 cache" : ""),
                     needed_bytes(smaller, demand)});
      found = true;
      break;
    }
    if (found) break;
  }
  for (const Demand& demand : {d, smaller_cache}) {
    Demand shorter = demand;
    const int64_t rest = needed_bytes(model, demand) -
                         cache_bytes(model.config, demand.cache_type, demand.context).all();
    shorter.context = longest_context(model.config, demand.cache_type, d.memory - rest);
    if (shorter.context == 0 || shorter.context >= d.context) continue;
    const bool cache_too = demand.cache_type != d.cache_type;
    out.push_back(
        {fmt::format("--context {}{}", shorter.context, cache_too ? " --cache-type int8" : ""),
         fmt::format("the longest context that fits{}", cache_too ? " then" : ""),
         needed_bytes(model, shorter)});
  }
  const int64_t needed = needed_bytes(model, d);
  out.push_back({fmt::format("--memory {}", needed), "the memory that it takes as asked", needed});
  return out;
}

int64_t machine_memory() {
  int64_t bytes = INT64_MAX;
  std::ifstream info("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  if (info >> key >> kilobytes && key == "MemTotal:") bytes = kilobytes * 1024;
  // Control groups, second version and first.
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    bytes = std::min(bytes, number_in(path));
  }
  if (bytes == INT64_MAX) {
    throw Error(ErrorKind::kUnsupported, "memory: the system does not say how much there is",
                "say it with --memory");
  }
  return bytes;
}

}  // namespace drover
