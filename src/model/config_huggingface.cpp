#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "base/error.h"
#include "formats/json.h"
#include "model/config.h"

namespace drover {
namespace {

namespace json = boost::json;

// The fields of a configuration, with the defaults of the reference's class, and the few readings
// that only configurations have.
class Fields : public JsonFields {
 public:
  using JsonFields::JsonFields;
  explicit Fields(const JsonFields& fields) : JsonFields(fields) {}

  // Written as null, which for some fields is not the same as absent.
  bool is_null(std::string_view key) const {
    const json::value* value = object().if_contains(key);
    return value != nullptr && value->is_null();
  }
  int64_t size(std::string_view key, int64_t otherwise) const {
    const int64_t value = integer(key).value_or(otherwise);
    if (value < 0 || value > int64_t{1} << 40) wrong(key, "a size", value);
    return value;
  }
  // Older files write 4 for true (attn_temperature_tuning).
  bool truth(std::string_view key, bool otherwise) const {
    const json::value* value = find(key);
    if (value != nullptr && value->is_number()) return *number(key) != 0;
    return boolean(key).value_or(otherwise);
  }
  // A list with one entry per layer; nothing if absent or empty.
  const json::array* layer_list(std::string_view key, int64_t layers) const {
    const json::value* value = find(key);
    if (value == nullptr) return nullptr;
    if (!value->is_array()) wrong(key, "a list", *value);
    const json::array& list = value->get_array();
    if (list.empty()) return nullptr;
    if (static_cast<int64_t>(list.size()) != layers) {
      wrong(key, fmt::format("{} entries, one per layer", layers), list.size());
    }
    return &list;
  }

  [[noreturn]] void wrong(std::string_view key, std::string_view expected,
                          const json::value& got) const {
    throw_error(ErrorKind::kBadData, "{}: '{}': expected {}, got {}", where(), key, expected,
                printable(json::serialize(got)));
  }
  [[noreturn]] void unsupported(std::string_view key, std::string_view what) const {
    throw_error(ErrorKind::kUnsupported, "{}: '{}': {}", where(), key, what);
  }
};

// rope_parameters in newer files; rope_theta beside rope_scaling in older ones.
void read_rope(const Fields& f, double default_theta, ModelConfig& c) {
  const bool newer = f.has("rope_parameters");
  const auto scaling = f.fields(newer ? "rope_parameters" : "rope_scaling");
  c.rope_theta = f.number("rope_theta").value_or(default_theta);
  if (newer) c.rope_theta = scaling->number("rope_theta").value_or(c.rope_theta);
  if (scaling) {
    const auto type =
        scaling->text("rope_type").value_or(scaling->text("type").value_or("default"));
    RopeScaling& out = c.rope_scaling;
    if (type == "llama3") {
      out.kind = RopeScaling::Kind::kLlama3;
      out.factor = scaling->number("factor").value_or(8);
      out.low = scaling->number("low_freq_factor").value_or(1);
      out.high = scaling->number("high_freq_factor").value_or(4);
      out.original_context = scaling->number("original_max_position_embeddings").value_or(8192);
    } else if (type == "linear") {
      out.kind = RopeScaling::Kind::kLinear;
      out.factor = scaling->number("factor").value_or(1);
    } else if (type != "default") {
      f.unsupported(
          newer ? "rope_parameters" : "rope_scaling",
          fmt::format("rope scaling '{}': expected default, linear or llama3", printable(type)));
    }
  }
  set_rope_frequencies(c);
}

void read_llama4_layers(const Fields& f, ModelConfig& c) {
  const int64_t layers = c.layer_count();
  // Rotation: 1 = rope. An empty or absent list means every layer but each interval-th.
  const int64_t interval = f.size("no_rope_layer_interval", 4);
  const json::array* rope = f.layer_list("no_rope_layers", layers);
  const json::array* types = f.layer_list("layer_types", layers);
  // An explicit null switches chunks off; absence means the family's 8192.
  c.chunk = f.is_null("attention_chunk_size") ? 0 : f.size("attention_chunk_size", 8192);
  if (c.chunk == 0 && !f.is_null("attention_chunk_size")) {
    f.wrong("attention_chunk_size", "at least 1, or null for no chunks", 0);
  }
  for (int64_t i = 0; i < layers; ++i) {
    LayerConfig& layer = c.layers[i];
    layer.rope = interval == 0 || (i + 1) % interval != 0;
    if (rope != nullptr) {
      const json::value& flag = (*rope)[i];
      if (!flag.is_number() && !flag.is_bool()) f.wrong("no_rope_layers", "0 or 1", flag);
      layer.rope = flag.is_bool() ? flag.get_bool() : flag.to_number<double>() != 0;
    }
    layer.chunked = layer.rope;
    if (types != nullptr) {
      const json::value& type = (*types)[i];
      layer.chunked = type == "chunked_attention";
      if (!layer.chunked && type != "full_attention") {
        f.wrong("layer_types", "chunked_attention or full_attention", type);
      }
    }
    if (c.chunk == 0) layer.chunked = false;
  }

  // MoE: the list if there is one (it may be empty: none), else every step-th layer.
  const int64_t step = f.size("interleave_moe_layer_step", 1);
  if (const json::value* list = f.find("moe_layers")) {
    if (!list->is_array()) f.wrong("moe_layers", "a list", *list);
    for (const json::value& entry : list->get_array()) {
      const double i = entry.is_number() ? entry.to_number<double>() : -1;
      if (!(i >= 0) || i >= static_cast<double>(layers))
        f.wrong("moe_layers", "layer numbers", entry);
      c.layers[static_cast<size_t>(i)].moe = true;
    }
  } else {
    for (int64_t i = 0; i < layers; ++i) c.layers[i].moe = step > 0 && (i + 1) % step == 0;
  }
}

void read_llama4(const Fields& f, ModelConfig& c) {
  c.vocab = f.size("vocab_size", 202048);
  c.hidden = f.size("hidden_size", 5120);
  c.heads = f.size("num_attention_heads", 40);
  c.kv_heads = f.size("num_key_value_heads", f.is_null("num_key_value_heads") ? c.heads : 8);
  c.head_dim = f.size("head_dim", f.is_null("head_dim") && c.heads > 0 ? c.hidden / c.heads : 128);
  c.expert_width = f.size("intermediate_size", 8192);
  c.dense_width = f.size("intermediate_size_mlp", 16384);
  c.experts = f.size("num_local_experts", 16);
  c.experts_used = f.size("num_experts_per_tok", 1);
  c.context = f.size("max_position_embeddings", 131072);
  c.norm_eps = static_cast<float>(f.number("rms_norm_eps").value_or(1e-5));
  c.qk_norm = f.truth("use_qk_norm", true);
  c.temperature_tuning = f.truth("attn_temperature_tuning", true);
  c.floor_scale = static_cast<float>(f.number("floor_scale").value_or(8192));
  c.attn_scale = static_cast<float>(f.number("attn_scale").value_or(0.1));
  read_llama4_layers(f, c);
}

void read_llama(const Fields& f, ModelConfig& c) {
  c.vocab = f.size("vocab_size", 32000);
  c.hidden = f.size("hidden_size", 4096);
  c.heads = f.size("num_attention_heads", 32);
  c.kv_heads = f.size("num_key_value_heads", c.heads);
  c.head_dim = f.size("head_dim", c.heads > 0 ? c.hidden / c.heads : 0);
  c.dense_width = f.size("intermediate_size", 11008);
  c.context = f.size("max_position_embeddings", 2048);
  c.norm_eps = static_cast<float>(f.number("rms_norm_eps").value_or(1e-6));
  for (LayerConfig& layer : c.layers) layer = {.rope = true, .chunked = false, .moe = false};
}

}  // namespace

ModelConfig config_from_huggingface(const json::object& root, const std::string& source) {
  const Fields top(root, source);
  const Fields f(top.fields("text_config").value_or(top));
  const std::string type(f.text("model_type").value_or(top.text("model_type").value_or("")));

  ModelConfig c;
  c.architecture = type == "llama4" || type == "llama4_text" ? "llama4" : type;
  if (c.architecture != "llama4" && c.architecture != "llama") {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: model_type '{}': expected llama4, llama4_text or llama", source,
                            printable(type)),
                "Drover runs the Llama 4 family and dense Llama models");
  }
  if (top.find("quantization_config") != nullptr || f.find("quantization_config") != nullptr) {
    top.unsupported("quantization_config", "expected weights in f32, f16 or bf16");
  }
  if (f.truth("attention_bias", false)) f.unsupported("attention_bias", "expected no biases");
  if (f.truth("mlp_bias", false)) f.unsupported("mlp_bias", "expected no biases");
  const std::string_view activation = f.text("hidden_act").value_or("silu");
  if (activation != "silu") {
    f.unsupported("hidden_act", fmt::format("expected silu, got {}", printable(activation)));
  }
  const int64_t layers = f.size("num_hidden_layers", c.architecture == "llama4" ? 48 : 32);
  if (layers < 1 || layers > 4096) {
    throw_error(ErrorKind::kBadData, "{}: 'num_hidden_layers': expected 1 to 4096, got {}", source,
                layers);
  }
  c.layers.resize(static_cast<size_t>(layers));
  c.name = top.text("_name_or_path").value_or("");
  c.tied_embeddings = f.truth("tie_word_embeddings", top.truth("tie_word_embeddings", false));
  if (c.architecture == "llama4") {
    read_llama4(f, c);
  } else {
    read_llama(f, c);
  }
  if (c.head_dim >= 2 && c.head_dim <= kMaxHeadDim) {
    read_rope(f, c.architecture == "llama4" ? 500000.0 : 10000.0, c);
  }
  drop_unused(c);
  validate(c, source);
  return c;
}

}  // namespace drover
