#include "model/export_huggingface.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "base/file_writer.h"
#include "formats/safetensors.h"
#include "model/tensor_table.h"
#include "model/vision_weights.h"
#include "tensor/dequantize.h"
#include "tensor/quantize.h"
#include "text/chat_format.h"
#include "text/python_json.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Layout = TensorSource::Layout;

// Our turns. A first system message is trimmed and other contents stand as they are; the items of a
// content that are no text are pictures.
constexpr std::string_view kPlainChatTemplate =
    R"({{- bos_token }}
{%- for message in messages %}
{{- '<|header_start|>' + message.role + '<|header_end|>\n\n' }}
{%- if message.content is string %}
{{- message.content | trim if loop.first and message.role == 'system' else message.content }}
{%- else %}
{%- for item in message.content %}
{{- item.text if item.type == 'text' else '<|image|>' }}
{%- endfor %}
{%- endif %}
{{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|header_start|>assistant<|header_end|>\n\n' }}
{%- endif %}
)";

// The shortest decimal number that reads back as this float: 1e-05 and not 9.99999974737875e-06.
double decimal(float value) { return std::stod(fmt::format("{}", value)); }

json::value id_or_null(std::optional<Token> id) { return id ? json::value(*id) : json::value(); }

std::string_view torch_name(DType type) {
  switch (type) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      throw_error(ErrorKind::kUsage,
                  "type of a Hugging Face folder: expected f32, f16 or bf16, got {}",
                  dtype_name(type));
  }
}

// Every token that ends an answer, increasing.
std::vector<Token> all_stops(const ModelParts& model) {
  std::vector<Token> out = model.notes.stops;
  if (model.vocabulary != nullptr) {
    out.insert(out.end(), model.vocabulary->stops.begin(), model.vocabulary->stops.end());
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::optional<Token> control_token(const ModelParts& model, std::string_view text) {
  if (model.vocabulary == nullptr) return std::nullopt;
  const Vocabulary& v = *model.vocabulary;
  const auto found = std::find(v.tokens.begin(), v.tokens.end(), text);
  if (found == v.tokens.end()) return std::nullopt;
  return static_cast<Token>(found - v.tokens.begin());
}

json::object rope_parameters(const ModelConfig& c) {
  json::object out = {{"rope_theta", c.rope_theta}};
  switch (c.rope_scaling.kind) {
    case RopeScaling::Kind::kNone:
      out["rope_type"] = "default";
      break;
    case RopeScaling::Kind::kLinear:
      out["rope_type"] = "linear";
      out["factor"] = c.rope_scaling.factor;
      break;
    case RopeScaling::Kind::kLlama3:
      out["rope_type"] = "llama3";
      out["factor"] = c.rope_scaling.factor;
      out["low_freq_factor"] = c.rope_scaling.low;
      out["high_freq_factor"] = c.rope_scaling.high;
      out["original_max_position_embeddings"] =
          static_cast<int64_t>(c.rope_scaling.original_context);
      break;
    case RopeScaling::Kind::kFactors:
      throw Error(ErrorKind::kUnsupported,
                  "config.json: expected rotations of theta and scaling, got divisors of each "
                  "frequency from a GGUF file",
                  "begin with the model's Hugging Face folder, or write GGUF");
  }
  return out;
}

// What both classes of text models say.
json::object text_config(const ModelParts& model, DType type) {
  const ModelConfig& c = model.config;
  const Vocabulary* v = model.vocabulary;
  const std::vector<Token> stops = all_stops(model);
  return {{"model_type", c.architecture == "llama4" ? "llama4_text" : c.architecture},
          {"dtype", torch_name(type)},
          {"vocab_size", c.vocab},
          {"hidden_size", c.hidden},
          {"num_hidden_layers", c.layer_count()},
          {"num_attention_heads", c.heads},
          {"num_key_value_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"max_position_embeddings", c.context},
          {"rms_norm_eps", decimal(c.norm_eps)},
          {"rope_parameters", rope_parameters(c)},
          {"tie_word_embeddings", c.tied_embeddings},
          {"bos_token_id", id_or_null(v != nullptr ? v->bos : std::nullopt)},
          {"eos_token_id", stops.empty() ? json::value() : json::value_from(stops)},
          {"pad_token_id", id_or_null(v != nullptr ? v->pad : std::nullopt)}};
}

void add_llama4_fields(const ModelConfig& c, json::object& out) {
  json::array rope, types, moe;
  for (int64_t i = 0; i < c.layer_count(); ++i) {
    const LayerConfig& layer = c.layers[static_cast<size_t>(i)];
    rope.push_back(layer.rope ? 1 : 0);
    types.push_back(layer.chunked ? "chunked_attention" : "full_attention");
    if (layer.moe) moe.push_back(i);
  }
  // Sizes that no layer uses must be there all the same.
  const int64_t expert_width = c.expert_width > 0 ? c.expert_width : c.dense_width;
  out["intermediate_size"] = expert_width;
  out["intermediate_size_mlp"] = c.dense_width > 0 ? c.dense_width : expert_width;
  out["num_local_experts"] = std::max<int64_t>(1, c.experts);
  out["num_experts_per_tok"] = std::max<int64_t>(1, c.experts_used);
  out["moe_layers"] = moe;
  out["no_rope_layers"] = rope;
  out["layer_types"] = types;
  out["attention_chunk_size"] = c.chunk > 0 ? c.chunk : 8192;
  out["use_qk_norm"] = c.qk_norm;
  out["attn_temperature_tuning"] = c.temperature_tuning;
  // A whole number in the reference's class.
  if (c.floor_scale == std::floor(c.floor_scale)) {
    out["floor_scale"] = static_cast<int64_t>(c.floor_scale);
  } else {
    out["floor_scale"] = decimal(c.floor_scale);
  }
  out["attn_scale"] = decimal(c.attn_scale);
}

json::object vision_config(const VisionConfig& c) {
  if (c.width != c.joined()) {
    throw_error(ErrorKind::kUnsupported,
                "config.json: vision: expected a feed-forward size of {}, as many values as joined "
                "patches have, since transformers knows one number for both; got {}",
                c.joined(), c.width);
  }
  return {{"model_type", "llama4_vision_model"},
          {"hidden_act", "gelu"},
          {"hidden_size", c.hidden},
          {"image_size", c.tiles.size},
          {"patch_size", c.patch},
          {"num_channels", 3},
          {"num_attention_heads", c.heads},
          {"num_hidden_layers", c.layer_count},
          {"intermediate_size", c.width},
          {"norm_eps", decimal(c.norm_eps)},
          {"pixel_shuffle_ratio", 1.0 / static_cast<double>(c.shuffle)},
          {"projector_input_dim", c.adapter},
          {"projector_output_dim", c.adapter},
          {"vision_output_dim", c.adapter},
          {"multi_modal_projector_bias", false},
          {"vision_feature_select_strategy", "default"},
          {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", c.rope_theta}}}};
}

json::object generation_config(const ModelParts& model) {
  const GenerationDefaults& g = model.notes.generation;
  json::object out;
  const auto set = [&](std::string_view key, const auto& value) {
    if (value) out[key] = *value;
  };
  if (model.vocabulary != nullptr) {
    set("bos_token_id", model.vocabulary->bos);
    set("pad_token_id", model.vocabulary->pad);
  }
  const std::vector<Token> stops = all_stops(model);
  if (!stops.empty()) out["eos_token_id"] = json::value_from(stops);
  out["do_sample"] = !g.greedy;
  if (g.greedy) return out;
  set("temperature", g.temperature);
  set("top_k", g.top_k);
  set("top_p", g.top_p);
  set("min_p", g.min_p);
  set("repetition_penalty", g.repeat_penalty);
  return out;
}

json::object tokenizer_config(const ModelParts& model) {
  const Vocabulary& v = *model.vocabulary;
  json::object out = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                      {"clean_up_tokenization_spaces", false},
                      {"model_max_length", model.config.context},
                      {"add_bos_token", v.add_bos}};
  const auto token = [&](std::string_view key, std::optional<Token> id) {
    if (id) out[key] = v.tokens[static_cast<size_t>(*id)];
  };
  token("bos_token", v.bos);
  token("eos_token", v.eos);
  token("pad_token", v.pad);
  const std::string_view chat_template = chat_template_of(v);
  if (!chat_template.empty()) out["chat_template"] = chat_template;
  return out;
}

json::object preprocessor_config(const VisionConfig& c) {
  const auto colours = [](const float(&values)[3]) {
    return json::array{decimal(values[0]), decimal(values[1]), decimal(values[2])};
  };
  return {{"image_processor_type", "Llama4ImageProcessorFast"},
          {"processor_class", "Llama4Processor"},
          {"size", {{"height", c.tiles.size}, {"width", c.tiles.size}}},
          {"max_patches", c.tiles.max_tiles},
          {"resize_to_max_canvas", c.tiles.fill_canvas},
          {"do_resize", true},
          {"do_rescale", true},
          {"rescale_factor", 1.0 / 255},
          {"do_normalize", true},
          {"do_convert_rgb", true},
          {"image_mean", colours(c.mean)},
          {"image_std", colours(c.std)}};
}

// "license: NAME" in front matter, which is where readers look.
std::string readme(const ModelNotes& notes) {
  std::string out = "---\n";
  const auto line = [&](std::string_view key, const std::string& value) {
    if (!value.empty()) out += fmt::format("{}: {}\n", key, value);
  };
  line("license", notes.licence.id);
  line("license_name", notes.licence.name);
  line("license_link", notes.licence.link);
  return out + "---\n\n# " + notes.name + "\n";
}

// One tensor of the folder, made of one tensor in GGUF's layout, or of two (gate and up).
struct Stored {
  Layout layout = Layout::kAsIs;
  int64_t head_dim = 0;  // kHalfSplit
  std::vector<const NamedTensor*> parts = {};
};

// A matrix of a GGUF tensor in f32, or the whole of one without experts.
std::vector<float> values_of(const NamedTensor& tensor, int64_t index, int64_t rows, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  const int64_t bytes = row_bytes(tensor.type, cols);
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(
        tensor.type, tensor.data + (index * rows + r) * bytes,
        std::span(out).subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols)));
  }
  return out;
}

class FolderTensors {
 public:
  FolderTensors(const ModelParts& model, DType type) : type_(type) {
    for (const NamedTensor& tensor : model.tensors) given_[tensor.name] = &tensor;
    const bool eyes = model.vision != nullptr;
    const std::string outside = eyes ? "language_model." : "";
    for (const ExpectedTensor& tensor : expected_tensors(model.config)) {
      const bool head = tensor.name == kOutputTensor;
      add(outside + (head ? "" : "model.") + tensor.huggingface, tensor, model.config.head_dim);
    }
    if (!eyes) return;
    for (const ExpectedTensor& tensor : expected_vision_tensors(*model.vision)) {
      add(tensor.huggingface, tensor, 0);
    }
  }

  void write(const fs::path& path, const Progress& progress) const {
    write_safetensors(
        path, specs_, {{"format", "pt"}},
        [&](size_t i, const TensorSink& sink) { produce(specs_[i].shape, stored_[i], sink); },
        progress);
  }

 private:
  void add(const std::string& name, const ExpectedTensor& expected, int64_t head_dim) {
    const auto found = given_.find(expected.name);
    if (found == given_.end() || found->second->shape != expected.shape) {
      throw_error(ErrorKind::kBadData, "tensor '{}': expected {}, got {}", expected.name,
                  shape_text(expected.shape),
                  found == given_.end() ? "none" : shape_text(found->second->shape));
    }
    const auto [at, is_new] = positions_.try_emplace(name, specs_.size());
    if (is_new) {
      specs_.push_back({name, type_, expected.huggingface_shape()});
      stored_.push_back({expected.layout, head_dim});
    }
    stored_[at->second].parts.push_back(found->second);
  }

  // Sends rows of floats in the type of the file.
  void send(std::span<const float> values, const TensorSink& sink) const {
    std::vector<std::byte> bytes(
        static_cast<size_t>(row_bytes(type_, static_cast<int64_t>(values.size()))));
    quantize_row(type_, values, bytes.data());
    sink(bytes);
  }

  void produce(std::span<const int64_t> shape, const Stored& stored, const TensorSink& sink) const {
    const NamedTensor& first = *stored.parts.front();
    if (stored.layout == Layout::kExperts) {
      // [out, in] of each part becomes [in, out of all].
      const int64_t in = shape[1], joined = shape[2];
      const int64_t out = joined / static_cast<int64_t>(stored.parts.size());
      std::vector<float> expert(static_cast<size_t>(in * joined));
      for (int64_t e = 0; e < shape[0]; ++e) {
        for (size_t part = 0; part < stored.parts.size(); ++part) {
          const std::vector<float> values = values_of(*stored.parts[part], e, out, in);
          const int64_t column = static_cast<int64_t>(part) * out;
          for (int64_t r = 0; r < out; ++r) {
            for (int64_t c = 0; c < in; ++c) {
              expert[static_cast<size_t>(c * joined + column + r)] =
                  values[static_cast<size_t>(r * in + c)];
            }
          }
        }
        send(expert, sink);
      }
      return;
    }
    const int64_t cols = shape.back(), rows = shape.size() == 1 ? 1 : shape[shape.size() - 2];
    const std::vector<float> values = values_of(first, 0, rows, cols);
    if (stored.layout == Layout::kAsIs) return send(values, sink);
    // Row (head, 2k + s) there is row (head, s d/2 + k) here.
    const int64_t d = stored.head_dim;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t half = r % d / (d / 2), k = r % d % (d / 2);
      const int64_t from = r / d * d + 2 * k + half;
      send(std::span(values).subspan(static_cast<size_t>(from * cols), static_cast<size_t>(cols)),
           sink);
    }
  }

  DType type_;
  std::unordered_map<std::string_view, const NamedTensor*> given_;
  std::unordered_map<std::string, size_t> positions_;
  std::vector<TensorSpec> specs_;
  std::vector<Stored> stored_;
};

}  // namespace

ModelNotes notes_of(const Model& model) {
  ModelNotes notes{model.config().name, model.licence(), model.generation(), model.advised_stops()};
  if (notes.name.empty()) {
    fs::path path = model.path().lexically_normal();
    if (!path.has_filename()) path = path.parent_path();  // "folder/"
    notes.name = (model.gguf() != nullptr ? path.stem() : path.filename()).string();
  }
  return notes;
}

std::string_view plain_chat_template() { return kPlainChatTemplate; }

std::string_view chat_template_of(const Vocabulary& vocabulary) {
  if (!vocabulary.chat_template.empty()) return vocabulary.chat_template;
  return detect_chat_format(vocabulary) == ChatFormat::kLlama4 ? kPlainChatTemplate
                                                               : std::string_view();
}

std::string huggingface_config(const ModelParts& model, DType type) {
  const ModelConfig& c = model.config;
  json::object out = text_config(model, type);
  if (c.architecture == "llama4") {
    add_llama4_fields(c, out);
  } else {
    out["intermediate_size"] = c.dense_width;
    out["mlp_bias"] = false;
  }
  if (model.vision == nullptr) {
    out["architectures"] =
        json::array{c.architecture == "llama4" ? "Llama4ForCausalLM" : "LlamaForCausalLM"};
    return python_json(out, 2) + '\n';
  }
  if (c.architecture != "llama4") {
    throw_error(ErrorKind::kUnsupported,
                "config.json: expected a llama4 model beside a vision encoder, got {}",
                c.architecture);
  }
  json::object whole = {{"architectures", json::array{"Llama4ForConditionalGeneration"}},
                        {"model_type", "llama4"},
                        {"dtype", torch_name(type)},
                        {"tie_word_embeddings", c.tied_embeddings}};
  // Where a model has no such tokens, the reference's defaults do no harm.
  const auto token = [&](std::string_view key, std::optional<Token> id) {
    if (id) whole[key] = *id;
  };
  token("image_token_index", model.vision->patch_token);
  token("boi_token_index", control_token(model, "<|image_start|>"));
  token("eoi_token_index", control_token(model, "<|image_end|>"));
  whole["text_config"] = std::move(out);
  whole["vision_config"] = vision_config(*model.vision);
  return python_json(whole, 2) + '\n';
}

void export_huggingface(const ModelParts& model, std::string_view tokenizer_json,
                        const fs::path& folder, DType type, const Progress& progress) {
  // All that can fail for the model's sake goes before the first byte.
  const std::string config = huggingface_config(model, type);
  const FolderTensors tensors(model, type);
  std::error_code code;
  fs::create_directories(folder, code);
  if (code) throw_errno("create", folder.string(), code.value());
  const auto write_json = [&](std::string_view name, const json::object& value) {
    write_file(folder / name, python_json(value, 2) + '\n');
  };
  tensors.write(folder / "model.safetensors", progress);
  write_json("generation_config.json", generation_config(model));
  if (model.vocabulary != nullptr) {
    write_file(folder / "tokenizer.json", tokenizer_json);
    write_json("tokenizer_config.json", tokenizer_config(model));
  }
  if (model.vision != nullptr) {
    write_json("preprocessor_config.json", preprocessor_config(*model.vision));
    write_json("processor_config.json",
               {{"processor_class", "Llama4Processor"},
                {"patch_size", model.vision->patch},
                {"pixel_shuffle_ratio", 1.0 / static_cast<double>(model.vision->shuffle)}});
  }
  if (!model.notes.licence.id.empty()) write_file(folder / "README.md", readme(model.notes));
  write_file(folder / "config.json", config);
}

}  // namespace drover
