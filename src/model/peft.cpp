#include "model/peft.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/file_writer.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "tensor/dequantize.h"
#include "tensor/quantize.h"
#include "text/python_json.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Layout = TensorSource::Layout;

constexpr std::string_view kBase = "base_model.model.";  // what PEFT puts before all names
constexpr std::string_view kWrapped = ".base_layer";     // a parameter of a module inside another's
constexpr std::string_view kSuffixA = ".lora_A.weight", kSuffixB = ".lora_B.weight";
// The version whose form of experts we write, and the first that has it.
constexpr std::string_view kPeftVersion = "0.21.2";

// The module that PEFT wraps: its own, or the experts', whose parameter is told by shape.
std::string_view wrapped_module(const AdapterTarget& target) {
  const std::string_view module = target.module;
  return target.has_experts() ? module.substr(0, module.rfind('.')) : module;
}

// --- Reading -------------------------------------------------------------------------------------

// The factors of one module as the file has them.
struct Pair {
  const NamedTensor* a = nullptr;
  const NamedTensor* b = nullptr;
};

bool is_set(const json::value& value) {
  if (value.is_null()) return false;
  if (value.is_bool()) return value.get_bool();
  if (value.is_array()) return !value.get_array().empty();
  if (value.is_object()) return !value.get_object().empty();
  return true;
}

class AdapterConfig {
 public:
  explicit AdapterConfig(const fs::path& path)
      : object_(read_json_object(path)), fields_(object_, printable(path.string(), 300)) {
    const std::string_view kind = fields_.required_text("peft_type");
    if (kind != "LORA")
      unsupported("peft_type", fmt::format("expected LORA, got {}", printable(kind)));
    if (fields_.text("bias").value_or("none") != "none") unsupported("bias", "expected none");
    for (const std::string_view key :
         {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora", "modules_to_save",
          "trainable_token_indices", "alora_invocation_tokens", "layer_replication",
          "velora_config", "kasa_config", "monteclora_config", "arrow_config"}) {
      const json::value* value = fields_.find(key);
      if (value != nullptr && is_set(*value)) unsupported(key, "expected a plain LoRA without it");
    }
    // Others take part of the base model's weights away, to which the adapter then belongs.
    if (const json::value* start = fields_.find("init_lora_weights");
        start != nullptr && start->is_string() && *start != "gaussian" && *start != "eva" &&
        *start != "orthogonal") {
      unsupported("init_lora_weights", "expected one that leaves the model as it is");
    }
    alpha_ = fields_.number("lora_alpha").value_or(8);
    root_ = fields_.boolean("use_rslora").value_or(false);
    patterns_ = fields_.fields("alpha_pattern");
  }

  double scale(std::string_view module, int64_t rank) const {
    double alpha = alpha_;
    if (patterns_) {
      for (const auto& [key, value] : patterns_->object()) {
        const std::string_view name = key;
        if (name.find_first_not_of(
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") !=
            std::string_view::npos) {
          unsupported("alpha_pattern", fmt::format("expected names, got '{}'", printable(name)));
        }
        if (!ends_with_name(module, name)) continue;
        alpha = patterns_->required_number(name);
        break;
      }
    }
    const double r = static_cast<double>(rank);
    const double scale = alpha / (root_ ? std::sqrt(r) : r);
    if (!std::isfinite(static_cast<float>(scale))) {
      throw_error(ErrorKind::kBadData,
                  "{}: 'lora_alpha': expected a scale that a float holds, got {}", fields_.where(),
                  scale);
    }
    return scale;
  }

  // Whether PEFT took the last axis of experts for the input when it wrote this, as it does since
  // 0.19.1; unset where it does not say its version, which it began to do in 0.18.
  std::optional<bool> last_axis_is_input() const {
    const auto version = fields_.text("peft_version");
    if (!version) return std::nullopt;
    return !(version->starts_with("0.17") || version->starts_with("0.18") ||
             version->starts_with("0.19.0"));
  }

  [[noreturn]] void unsupported(std::string_view key, const std::string& what) const {
    throw_error(ErrorKind::kUnsupported, "{}: '{}': {}", fields_.where(), key, what);
  }

 private:
  // "self_attn.q_proj" names "model.layers.0.self_attn.q_proj"; so does the whole name, whatever
  // the prefix of its class.
  static bool ends_with_name(std::string_view module, std::string_view name) {
    for (const std::string_view prefix : kDecoderPrefixes) {
      if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
    }
    return module == name ||
           (module.ends_with(name) && module[module.size() - name.size() - 1] == '.');
  }

  json::object object_;
  JsonFields fields_;
  double alpha_ = 0;
  bool root_ = false;
  std::optional<JsonFields> patterns_;
};

// "base_model.model.model.layers.0.self_attn.q_proj" -> "layers.0.self_attn.q_proj".
std::string_view module_name(std::string_view name, const std::string& source) {
  const std::string whole(name);
  if (name.starts_with(kBase)) name.remove_prefix(kBase.size());
  while (name.ends_with(kWrapped)) name.remove_suffix(kWrapped.size());
  if (name.find("vision_model.") != std::string_view::npos ||
      name.find("multi_modal_projector") != std::string_view::npos) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: '{}': expected adapters of the decoder, got one of its eyes",
                            source, printable(whole)),
                "teach it with target_modules that name the language model's layers only");
  }
  for (const std::string_view prefix : kDecoderPrefixes) {
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  }
  if (name == "language_model.lm_head") return name.substr(name.rfind('.') + 1);
  return name;
}

// The pairs of the file by module: of experts there may be two.
std::multimap<std::string, Pair, std::less<>> pairs_of(const SafetensorsFile& file) {
  std::map<std::string_view, Pair> by_name;
  for (const NamedTensor& tensor : file.tensors()) {
    std::string_view name = tensor.name;
    const bool is_a = name.ends_with(kSuffixA), is_b = name.ends_with(kSuffixB);
    if (!is_a && !is_b) {
      const bool whole =
          name.ends_with(".base_layer.weight") || name.ends_with("embed_tokens.weight");
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: tensor '{}': expected lora_A or lora_B of a linear map",
                              file.path(), printable(name)),
                  whole ? "PEFT leaves the model's own matrices out with save_pretrained(..., "
                          "save_embedding_layers=False)"
                        : "");
    }
    if (tensor.shape.size() != 2 || tensor.bytes == 0 || !dtype_info(tensor.type).is_weight) {
      throw_error(ErrorKind::kBadData, "{}: tensor '{}': expected a matrix of floats, got {} {}",
                  file.path(), printable(name), dtype_name(tensor.type), shape_text(tensor.shape));
    }
    name.remove_suffix(kSuffixA.size());
    (is_a ? by_name[name].a : by_name[name].b) = &tensor;
  }
  std::multimap<std::string, Pair, std::less<>> out;
  for (const auto& [name, pair] : by_name) {
    if (pair.a == nullptr || pair.b == nullptr) {
      throw_error(ErrorKind::kBadData, "{}: '{}': expected lora_A and lora_B, got one of them",
                  file.path(), printable(name));
    }
    out.emplace(std::string(module_name(name, file.path())), pair);
  }
  return out;
}

// How the factors of a file fit a target.
enum class Fit { kPlain, kExchanged };

// Exchanged: the file has them for the transpose, [in, out], which only experts can be.
bool fits(const AdapterTarget& target, const Pair& pair, Fit fit) {
  const int64_t in = fit == Fit::kPlain ? target.cols : target.rows;
  const int64_t out = fit == Fit::kPlain ? target.rows : target.cols;
  return pair.a->shape[1] == in && pair.b->shape[0] == out &&
         pair.a->shape[0] == pair.b->shape[1] && pair.a->shape[0] % target.matrices == 0;
}

std::vector<float> floats_of(const NamedTensor& tensor) {
  const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
  std::vector<float> out(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(
        tensor.type, tensor.data + r * row_bytes(tensor.type, cols),
        std::span(out).subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols)));
  }
  return out;
}

// Row (head, 2k + s) of GGUF is row (head, s d/2 + k) of the reference.
int64_t half_split_row(int64_t row, int64_t d) {
  return row / d * d + (row % 2) * (d / 2) + row % d / 2;
}

// Where the elements of lora_A and lora_B stand: of matrix e and rank k, both [matrices * rank]
// long in one direction. PEFT numbers them e * rank + k in A and k * matrices + e in B.
LowRank take(const AdapterTarget& target, const Pair& pair, Fit fit, const ModelConfig& config) {
  const int64_t E = target.matrices, rank = pair.a->shape[0] / E;
  LowRank out{target, rank};
  out.a.resize(static_cast<size_t>(E * rank * target.cols));
  out.b.resize(static_cast<size_t>(E * target.rows * rank));
  const std::vector<float> a = floats_of(*pair.a), b = floats_of(*pair.b);
  const int64_t a_cols = pair.a->shape[1];
  const auto in_a = [&](int64_t e, int64_t k, int64_t i) {
    return a[static_cast<size_t>((e * rank + k) * a_cols + i)];
  };
  const auto in_b = [&](int64_t e, int64_t k, int64_t o) {
    return b[static_cast<size_t>(o * E * rank + k * E + e)];
  };
  const bool plain = fit == Fit::kPlain;
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t i = 0; i < target.cols; ++i) {
        out.a[static_cast<size_t>((e * rank + k) * target.cols + i)] =
            plain ? in_a(e, k, i) : in_b(e, k, i);
      }
      for (int64_t o = 0; o < target.rows; ++o) {
        const int64_t from =
            target.layout == Layout::kHalfSplit ? half_split_row(o, config.head_dim) : o;
        out.b[static_cast<size_t>((e * target.rows + o) * rank + k)] =
            plain ? in_b(e, k, from) : in_a(e, k, from);
      }
    }
  }
  return out;
}

// Which of the experts' parameters each pair of their module is, and in which form. The shapes
// tell, but for square ones: those PEFT's version tells.
void take_experts(std::span<const AdapterTarget* const> targets, std::span<const Pair> pairs,
                  const AdapterConfig& settings, const ModelConfig& config,
                  const std::string& source, std::vector<LowRank>& out) {
  std::vector<Fit> forms = {Fit::kExchanged, Fit::kPlain};
  if (const auto last = settings.last_axis_is_input()) {
    forms = {*last ? Fit::kExchanged : Fit::kPlain};
    forms.push_back(*last ? Fit::kPlain : Fit::kExchanged);
  }
  // One file has one form.
  for (const Fit form : forms) {
    std::vector<std::pair<const AdapterTarget*, const Pair*>> found;
    for (const AdapterTarget* target : targets) {
      for (const Pair& pair : pairs) {
        if (fits(*target, pair, form)) found.emplace_back(target, &pair);
      }
    }
    if (found.size() != pairs.size()) continue;
    for (const auto& [target, pair] : found) out.push_back(take(*target, *pair, form, config));
    return;
  }
  const Pair& pair = pairs.front();
  throw Error(
      ErrorKind::kBadData,
      fmt::format("{}: '{}': expected factors of {} experts of {} and {}, got {} and {}", source,
                  targets.front()->module, targets.front()->matrices, config.hidden,
                  config.expert_width, shape_text(pair.a->shape), shape_text(pair.b->shape)),
      "the adapter belongs to a model of another shape");
}

}  // namespace

std::vector<AdapterTarget> adapter_targets(const ModelConfig& config) {
  std::vector<AdapterTarget> out;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    if (tensor.shape.size() < 2 || tensor.huggingface == "embed_tokens.weight" ||
        tensor.huggingface.ends_with(".router.weight")) {
      continue;
    }
    std::string module = tensor.huggingface;
    if (module.ends_with(".weight")) module.resize(module.size() - std::string(".weight").size());
    const int64_t rows = tensor.shape[tensor.shape.size() - 2];
    if (!out.empty() && out.back().module == module) {  // up after gate
      out.back().tensors.push_back(tensor.name);
      out.back().rows += rows;
      continue;
    }
    const int64_t matrices = tensor.shape.size() == 3 ? tensor.shape[0] : 1;
    out.push_back({module, {tensor.name}, matrices, rows, tensor.shape.back(), tensor.layout});
  }
  return out;
}

std::vector<LowRank> read_peft(const fs::path& folder, const ModelConfig& config) {
  const AdapterConfig settings(folder / "adapter_config.json");
  const fs::path weights = folder / "adapter_model.safetensors";
  std::error_code ignored;
  if (!fs::exists(weights, ignored) && fs::exists(folder / "adapter_model.bin", ignored)) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: expected adapter_model.safetensors, got adapter_model.bin",
                            printable(folder.string(), 300)),
                "PEFT writes it with save_pretrained(..., safe_serialization=True)");
  }
  const SafetensorsFile file = SafetensorsFile::open(weights);
  const auto pairs = pairs_of(file);
  const std::vector<AdapterTarget> targets = adapter_targets(config);

  std::vector<LowRank> out;
  std::map<std::string_view, bool> used;
  for (size_t i = 0; i < targets.size(); ++i) {
    const AdapterTarget& target = targets[i];
    const std::string_view module = wrapped_module(target);
    const auto [first, last] = pairs.equal_range(module);
    if (first == last || used[module]) continue;
    used[module] = true;
    if (target.has_experts()) {
      // Both parameters of the module stand side by side.
      std::vector<const AdapterTarget*> both;
      for (size_t j = i; j < targets.size() && wrapped_module(targets[j]) == module; ++j) {
        both.push_back(&targets[j]);
      }
      std::vector<Pair> theirs;
      for (auto at = first; at != last; ++at) theirs.push_back(at->second);
      take_experts(both, theirs, settings, config, file.path(), out);
      continue;
    }
    const Pair& pair = first->second;
    if (std::next(first) != last || !fits(target, pair, Fit::kPlain)) {
      throw Error(ErrorKind::kBadData,
                  fmt::format("{}: '{}': expected factors of [{}, {}], got {} and {}", file.path(),
                              target.module, target.rows, target.cols, shape_text(pair.a->shape),
                              shape_text(pair.b->shape)),
                  "the adapter belongs to a model of another shape");
    }
    out.push_back(take(target, pair, Fit::kPlain, config));
  }
  for (const auto& [module, pair] : pairs) {
    if (used[module]) continue;
    throw Error(ErrorKind::kBadData,
                fmt::format("{}: '{}': expected a linear map of this {} model, which has none of "
                            "that name",
                            file.path(), printable(module), config.architecture),
                "the adapter belongs to another model");
  }
  if (out.empty()) {
    throw_error(ErrorKind::kBadData, "{}: expected factors of at least one map, got none",
                file.path());
  }
  for (LowRank& low : out) {
    low.scale = static_cast<float>(settings.scale(low.target.module, low.rank));
  }
  return out;
}

// --- Writing -------------------------------------------------------------------------------------

void write_peft(std::span<const LowRank> adapters, const PeftNotes& notes,
                const ModelConfig& config, const fs::path& folder, DType type) {
  const std::string prefix = notes.multimodal ? "language_model.model." : "model.";
  const auto class_name = [&](std::string_view module) {
    if (module != "lm_head") return prefix + std::string(module);
    return (notes.multimodal ? "language_model." : "") + std::string(module);
  };
  // PEFT wraps the experts' gate_up_proj first, where it is a target, and down_proj around it.
  const auto is_target = [&](std::string_view module) {
    return std::any_of(adapters.begin(), adapters.end(),
                       [&](const LowRank& low) { return low.target.module == module; });
  };

  std::vector<TensorSpec> specs;
  std::vector<std::vector<float>> values;
  json::array modules, parameters;
  for (const LowRank& low : adapters) {
    const AdapterTarget& target = low.target;
    DROVER_CHECK(low.rank == notes.rank);
    const int64_t E = target.matrices, rank = low.rank;
    const bool experts = target.has_experts();
    (experts ? parameters : modules).push_back(json::value(class_name(target.module)));
    std::string name = std::string(kBase) + class_name(wrapped_module(target));
    if (target.module.ends_with(".gate_up_proj") &&
        is_target(std::string(wrapped_module(target)) + ".down_proj")) {
      name += kWrapped;
    }
    const int64_t in = experts ? target.rows : target.cols;
    const int64_t out = experts ? target.cols : target.rows;
    std::vector<float> a(static_cast<size_t>(E * rank * in)),
        b(static_cast<size_t>(out * rank * E));
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t k = 0; k < rank; ++k) {
        const auto ours_a = [&](int64_t i) {
          return low.a[static_cast<size_t>((e * rank + k) * target.cols + i)];
        };
        const auto ours_b = [&](int64_t o) {
          return low.b[static_cast<size_t>((e * target.rows + o) * rank + k)];
        };
        for (int64_t i = 0; i < in; ++i) {
          a[static_cast<size_t>((e * rank + k) * in + i)] = experts ? ours_b(i) : ours_a(i);
        }
        for (int64_t o = 0; o < out; ++o) {
          const int64_t to =
              target.layout == Layout::kHalfSplit ? half_split_row(o, config.head_dim) : o;
          b[static_cast<size_t>(to * rank * E + k * E + e)] = experts ? ours_a(o) : ours_b(o);
        }
      }
    }
    specs.push_back({name + std::string(kSuffixA), type, {E * rank, in}});
    values.push_back(std::move(a));
    specs.push_back({name + std::string(kSuffixB), type, {out, rank * E}});
    values.push_back(std::move(b));
  }

  std::error_code code;
  fs::create_directories(folder, code);
  if (code) throw_errno("create", folder.string(), code.value());
  write_safetensors(folder / "adapter_model.safetensors", specs, {{"format", "pt"}},
                    [&](size_t i, const TensorSink& sink) {
                      std::vector<std::byte> bytes(static_cast<size_t>(
                          row_bytes(type, static_cast<int64_t>(values[i].size()))));
                      quantize_row(type, values[i], bytes.data());
                      sink(bytes);
                    });
  json::object settings = {
      {"peft_type", "LORA"},
      {"peft_version", kPeftVersion},
      {"task_type", "CAUSAL_LM"},
      {"base_model_name_or_path",
       notes.base_model.empty() ? json::value() : json::value(notes.base_model)},
      {"inference_mode", true},
      {"r", notes.rank},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"target_modules", std::move(modules)}};
  // A whole number in PEFT's class.
  if (notes.alpha == std::floor(notes.alpha)) {
    settings["lora_alpha"] = static_cast<int64_t>(notes.alpha);
  } else {
    settings["lora_alpha"] = notes.alpha;
  }
  if (!parameters.empty()) settings["target_parameters"] = std::move(parameters);
  write_file(folder / "adapter_config.json", python_json(settings, 2) + '\n');
}

}  // namespace drover
