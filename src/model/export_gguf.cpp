#include "model/export_gguf.h"

#include <algorithm>
#include <boost/json.hpp>

#include "base/error.h"
#include "formats/gguf_writer.h"
#include "model/config.h"
#include "model/model.h"
#include "model/tensor_table.h"
#include "model/vocabulary_source.h"
#include "tensor/dequantize.h"
#include "tensor/quantize.h"
#include "text/byte_alphabet.h"

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
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 7;
    case DType::kQ5_0:
      return 8;
    case DType::kQ5_1:
      return 9;
    case DType::kQ4_K:
      return 14;
    case DType::kQ5_K:
      return 16;
    case DType::kQ6_K:
      return 18;
    case DType::kBF16:
      return 32;
    default:
      return 1024;  // "guessed" in the words of other writers
  }
}

std::vector<bool> per_layer(const ModelConfig& c, bool LayerConfig::*member) {
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

// The makers' advice on sampling and on where to stop, under the keys that other writers use.
void write_advice(GgufWriter& out, const HuggingfaceFolder& folder) {
  const boost::json::object& advice =
      folder.generation_config ? *folder.generation_config : folder.config;
  const auto number = [&](std::string_view from, const std::string& key) {
    const boost::json::value* value = advice.if_contains(from);
    if (value != nullptr && value->is_number()) out.set(key, value->to_number<float>());
  };
  const boost::json::value* sample = advice.if_contains("do_sample");
  if (sample != nullptr && sample->is_bool() && !sample->get_bool()) {
    out.set("general.sampling.temp", 0.0f);
  } else {
    number("temperature", "general.sampling.temp");
  }
  number("top_p", "general.sampling.top_p");
  number("min_p", "general.sampling.min_p");
  number("repetition_penalty", "general.sampling.penalty_repeat");
  const boost::json::value* k = advice.if_contains("top_k");
  if (k != nullptr && k->is_int64() && k->get_int64() >= 0 && k->get_int64() < (1 << 30)) {
    out.set("general.sampling.top_k", static_cast<int32_t>(k->get_int64()));
  }
  const std::vector<Token> stops = generation_stops(advice);
  if (!stops.empty()) out.set(kStopTokensKey, std::vector<int32_t>(stops.begin(), stops.end()));
}

std::string_view gguf_pre_name(PreTokenizer pre) {
  switch (pre) {
    case PreTokenizer::kLlama4:
      return "llama4";
    case PreTokenizer::kLlama3:
      return "llama-bpe";
    case PreTokenizer::kGpt2:
      return "gpt-2";
    case PreTokenizer::kSmolLm:
      return "smollm";
  }
  return "default";
}

// The tokenizer as spec section 9.2 has it. Ids that the vocabulary leaves out are padded, since
// other readers want as many tokens as there are embeddings.
void write_vocabulary(GgufWriter& out, const Vocabulary& v, int64_t vocab) {
  constexpr int32_t kTypes[] = {1, 2, 3, 4, 5, 6};  // in the order of TokenKind
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  for (int64_t id = 0; id < vocab; ++id) {
    const bool known =
        id < static_cast<int64_t>(v.tokens.size()) && v.kinds[id] != TokenKind::kUnused;
    if (!known) {
      tokens.push_back(fmt::format("[PAD{}]", id));
      types.push_back(5);
      continue;
    }
    const bool is_text =
        v.kinds[id] == TokenKind::kControl || v.kinds[id] == TokenKind::kUserDefined;
    tokens.push_back(is_text ? v.tokens[id] : bytes_to_alphabet(v.tokens[id]));
    types.push_back(kTypes[static_cast<size_t>(v.kinds[id])]);
  }
  std::vector<std::string> merges;
  for (const auto& [left, right] : v.merges) {
    merges.push_back(bytes_to_alphabet(v.tokens[left]) + " " + bytes_to_alphabet(v.tokens[right]));
  }
  out.set("tokenizer.ggml.model", std::string("gpt2"));
  out.set("tokenizer.ggml.pre", std::string(gguf_pre_name(v.pre)));
  out.set("tokenizer.ggml.tokens", tokens);
  out.set("tokenizer.ggml.token_type", types);
  out.set("tokenizer.ggml.merges", merges);
  const auto id = [&](std::string_view key, std::optional<Token> token) {
    if (token) out.set(fmt::format("tokenizer.ggml.{}", key), static_cast<uint32_t>(*token));
  };
  id("bos_token_id", v.bos);
  id("eos_token_id", v.eos);
  id("padding_token_id", v.pad);
  out.set("tokenizer.ggml.add_bos_token", v.add_bos);
  if (!v.chat_template.empty()) out.set("tokenizer.chat_template", v.chat_template);
}

// The divisors of llama3 scaling, one per pair (spec section 9.3): other readers find it only here.
std::vector<float> rope_divisors(const ModelConfig& config) {
  ModelConfig plain = config;
  plain.rope_scaling = {};
  set_rope_frequencies(plain);
  std::vector<float> out;
  for (size_t k = 0; k < config.rope_frequencies.size(); ++k) {
    out.push_back(plain.rope_frequencies[k] / config.rope_frequencies[k]);
  }
  return out;
}

// Converts `count` rows of one matrix to `type`. Each worker takes a stripe of rows.
void convert_rows(Context& context, const TensorSource& tensor, int64_t index, int64_t first,
                  int64_t count, DType type, std::byte* out) {
  const int64_t cols = tensor.cols(), bytes = row_bytes(type, cols);
  const int64_t source_bytes = row_bytes(tensor.from->type, cols);
  constexpr int64_t kStripe = 32;  // the squares that read_rows transposes
  context.threads.run((count + kStripe - 1) / kStripe, [&](int64_t stripe, int worker) {
    const int64_t row = stripe * kStripe, n = std::min(kStripe, count - row);
    float* values = context.scratch<float>(worker, cols + (n * source_bytes + 3) / 4);
    std::byte* source = reinterpret_cast<std::byte*>(values + cols);
    read_rows(tensor, index, first + row, n, source);
    for (int64_t r = 0; r < n; ++r) {
      const std::span<float> floats(values, static_cast<size_t>(cols));
      dequantize_row(tensor.from->type, source + r * source_bytes, floats);
      quantize_row(type, floats, out + (row + r) * bytes);
    }
  });
}

}  // namespace

void export_gguf(Context& context, const HuggingfaceFolder& folder,
                 const std::filesystem::path& path, DType type, const Progress& progress) {
  const ModelConfig config =
      config_from_huggingface(folder.config, (folder.path / "config.json").string());
  const std::vector<TensorSource> tensors = decoder_tensors(folder, config);

  GgufWriter out;
  out.set("general.architecture", config.architecture);
  out.set("general.type", std::string("model"));
  std::string name = folder.path.filename().string();
  if (name.empty()) name = folder.path.parent_path().filename().string();  // "folder/"
  out.set("general.name", name);
  const LicenceNote licence = licence_of(folder);
  if (!licence.id.empty()) out.set("general.license", licence.id);
  if (!licence.name.empty()) out.set("general.license.name", licence.name);
  if (!licence.link.empty()) out.set("general.license.link", licence.link);
  out.set("general.file_type", file_type(type));
  if (is_quantized(type)) out.set("general.quantization_version", uint32_t{2});
  write_config(out, config);
  write_advice(out, folder);
  try {
    write_vocabulary(out, vocabulary_of(folder), config.vocab);
  } catch (const Error& error) {
    // A folder without a tokenizer makes a file without one.
    if (error.kind() != ErrorKind::kUnsupported) throw;
  }

  const std::vector<float> divisors = rope_divisors(config);
  const bool has_divisors = config.rope_scaling.kind == RopeScaling::Kind::kLlama3;
  uint64_t total = 0, done = 0;
  std::vector<DType> types;
  for (const TensorSource& tensor : tensors) {
    types.push_back(stored_type(tensor, type));
    out.add_tensor(tensor.name, types.back(), tensor.shape);
    total += tensor.matrices() * tensor.rows() * row_bytes(types.back(), tensor.cols());
  }
  if (has_divisors) {
    out.add_tensor("rope_freqs.weight", DType::kF32, {static_cast<int64_t>(divisors.size())});
  }
  AlignedArray<std::byte> buffer;
  out.write(path, [&](size_t number, const TensorSink& sink) {
    if (number == tensors.size()) return sink(std::as_bytes(std::span(divisors)));
    const TensorSource& tensor = tensors[number];
    const int64_t bytes = row_bytes(types[number], tensor.cols());
    // 16 MB at a time: enough for all threads, little beside the model.
    const int64_t rows = std::clamp<int64_t>((int64_t{16} << 20) / bytes, 1, tensor.rows());
    buffer.reserve_discarding(rows * bytes);
    for (int64_t index = 0; index < tensor.matrices(); ++index) {
      for (int64_t first = 0; first < tensor.rows(); first += rows) {
        const int64_t n = std::min(rows, tensor.rows() - first);
        convert_rows(context, tensor, index, first, n, types[number], buffer.data());
        sink({buffer.data(), static_cast<size_t>(n * bytes)});
        done += n * bytes;
        if (progress) progress(done, total);
      }
    }
  });
}

}  // namespace drover
