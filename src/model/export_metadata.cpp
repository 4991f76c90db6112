#include "model/export_metadata.h"

#include <algorithm>
#include <boost/json.hpp>

#include "base/error.h"
#include "model/vocabulary_source.h"
#include "text/byte_alphabet.h"

namespace drover {
namespace {

std::vector<bool> per_layer(const ModelConfig& c, bool LayerConfig::*member) {
  std::vector<bool> out;
  for (const LayerConfig& layer : c.layers) out.push_back(layer.*member);
  return out;
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

}  // namespace

void write_advice(GgufWriter& out, const GenerationDefaults& advice,
                  const std::vector<Token>& stops) {
  const auto number = [&](std::string_view key, std::optional<double> value) {
    if (value) out.set(key, static_cast<float>(*value));
  };
  number("general.sampling.temp", advice.greedy ? 0.0 : advice.temperature);
  number("general.sampling.top_p", advice.top_p);
  number("general.sampling.min_p", advice.min_p);
  number("general.sampling.penalty_repeat", advice.repeat_penalty);
  if (advice.top_k) out.set("general.sampling.top_k", static_cast<int32_t>(*advice.top_k));
  if (!stops.empty()) out.set(kStopTokensKey, std::vector<int32_t>(stops.begin(), stops.end()));
}

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

void write_general(GgufWriter& out, std::string_view architecture, std::string_view type,
                   std::string_view name, const LicenceNote& licence) {
  out.set("general.architecture", architecture);
  out.set("general.type", type);
  if (!name.empty()) out.set("general.name", name);
  if (!licence.id.empty()) out.set("general.license", licence.id);
  if (!licence.name.empty()) out.set("general.license.name", licence.name);
  if (!licence.link.empty()) out.set("general.license.link", licence.link);
}

std::string folder_name(const HuggingfaceFolder& folder) {
  const std::string name = folder.path.filename().string();
  return name.empty() ? folder.path.parent_path().filename().string() : name;  // "folder/"
}

void write_folder_metadata(GgufWriter& out, const HuggingfaceFolder& folder,
                           const ModelConfig& config) {
  write_general(out, config.architecture, "model", folder_name(folder), licence_of(folder));
  write_config(out, config);
  const boost::json::object& advice =
      folder.generation_config ? *folder.generation_config : folder.config;
  write_advice(out, generation_advice(advice), generation_stops(advice));
  try {
    write_vocabulary(out, vocabulary_of(folder), config.vocab);
  } catch (const Error& error) {
    // A folder without a tokenizer makes a file without one.
    if (error.kind() != ErrorKind::kUnsupported) throw;
  }
}

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

}  // namespace drover
