#include "model/quantize_mixture.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/error.h"
#include "model/vision_weights.h"

namespace drover {
namespace {

using enum DType;

enum class Part { kAttnV, kAttnOutput, kFfnDown, kExperts };

enum class Where {
  kEverywhere,
  kGrouped,   // at least four query heads share a key head: the matrix is small beside others
  kFirstTwo,  // layers
  kFirstFour,
  kFirst16th,
  kFirst8th,
  kFirst8thBlind,   // without an importance matrix
  kFirst8thGuided,  // with one
  kMoreBits,        // the first and the last eighth, and every third layer between
};

// A part of some layers that gets another type than most.
struct Rule {
  Part part;
  Where where;
  DType type;
};

using enum Part;
using enum Where;

// Of several rules that hold, the first counts.
constexpr Rule kQ2_KRules[] = {{kAttnV, kGrouped, kQ4_K},
                               {kAttnV, kEverywhere, kQ3_K},
                               {kFfnDown, kEverywhere, kQ3_K},
                               {kAttnOutput, kEverywhere, kQ3_K}};
constexpr Rule kQ2_K_SRules[] = {{kAttnV, kGrouped, kQ4_K}, {kFfnDown, kFirst8th, kQ4_K}};
constexpr Rule kQ3_K_MRules[] = {{kAttnV, kFirstTwo, kQ5_K},
                                 {kAttnV, kEverywhere, kQ4_K},
                                 {kFfnDown, kFirst16th, kQ5_K},
                                 {kFfnDown, kEverywhere, kQ4_K},
                                 {kAttnOutput, kEverywhere, kQ4_K}};
constexpr Rule kQ3_K_LRules[] = {{kAttnV, kEverywhere, kQ5_K},
                                 {kFfnDown, kEverywhere, kQ5_K},
                                 {kAttnOutput, kEverywhere, kQ5_K}};
constexpr Rule kQ4_K_SRules[] = {{kAttnV, kFirstFour, kQ5_K}, {kFfnDown, kFirst8th, kQ5_K}};
constexpr Rule kK_MRules[] = {{kAttnV, kMoreBits, kQ6_K}, {kFfnDown, kMoreBits, kQ6_K}};
constexpr Rule kIQ4Rules[] = {{kAttnV, kGrouped, kQ5_K}, {kFfnDown, kFirst8thBlind, kQ5_K}};
constexpr Rule kQ4_0Rules[] = {{kFfnDown, kFirst8thGuided, kQ4_1}};
constexpr Rule kQ5_0Rules[] = {{kFfnDown, kFirst8thGuided, kQ5_1}};
constexpr Rule kMoeRules[] = {{kExperts, kEverywhere, kMXFP4}};

struct Recipe {
  Mixture mixture;
  std::span<const Rule> rules = {};
};

// From the largest to the smallest, as help lists them.
constexpr Recipe kRecipes[] = {
    {{"f32", kF32, 0}},
    {{"f16", kF16, 1}},
    {{"bf16", kBF16, 32}},
    {{"q8_0", kQ8_0, 7}},
    {{"q6_k", kQ6_K, 18}},
    {{"q5_1", kQ5_1, 9}},
    {{"q5_k_m", kQ5_K, 17}, kK_MRules},
    {{"q5_k_s", kQ5_K, 16}},
    {{"q5_0", kQ5_0, 8}, kQ5_0Rules},
    {{"q4_1", kQ4_1, 3}},
    {{"q4_k_m", kQ4_K, 15}, kK_MRules},
    {{"q4_k_s", kQ4_K, 14}, kQ4_K_SRules},
    {{"q4_0", kQ4_0, 2}, kQ4_0Rules},
    {{"iq4_nl", kIQ4_NL, 25}, kIQ4Rules},
    {{"mxfp4", kMXFP4, 38}},
    {{"mxfp4_moe", kQ8_0, 38}, kMoeRules},
    {{"iq4_xs", kIQ4_XS, 30}, kIQ4Rules},
    {{"q3_k_l", kQ3_K, 13}, kQ3_K_LRules},
    {{"q3_k_m", kQ3_K, 12}, kQ3_K_MRules},
    {{"q3_k_s", kQ3_K, 11}},
    {{"q2_k", kQ2_K, 10}, kQ2_KRules},
    {{"q2_k_s", kQ2_K, 21}, kQ2_K_SRules},
};

struct Alias {
  std::string_view name, means;
};
constexpr Alias kAliases[] = {{"q3_k", "q3_k_m"}, {"q4_k", "q4_k_m"}, {"q5_k", "q5_k_m"}};

std::span<const Rule> rules_of(const Mixture& mixture) {
  for (const Recipe& recipe : kRecipes) {
    if (recipe.mixture.name == mixture.name) return recipe.rules;
  }
  return {};
}

// N of "blk.N.part.weight"; nothing for a tensor of no layer.
std::optional<int64_t> layer_of(std::string_view tensor) {
  constexpr std::string_view kPrefix = "blk.";
  if (!tensor.starts_with(kPrefix)) return std::nullopt;
  int64_t layer = 0;
  const char* end = tensor.data() + tensor.size();
  const auto [next, error] = std::from_chars(tensor.data() + kPrefix.size(), end, layer);
  if (error != std::errc() || next == end || *next != '.' || layer < 0) return std::nullopt;
  return layer;
}

bool is_part(std::string_view tensor, std::string_view part) {
  return tensor.find(part) != std::string_view::npos;
}

bool concerns(Part part, std::string_view tensor) {
  switch (part) {
    case kAttnV:
      return is_part(tensor, ".attn_v.");
    case kAttnOutput:
      return is_part(tensor, ".attn_output.");
    case kFfnDown:
      return is_part(tensor, ".ffn_down");
    case kExperts:
      return is_part(tensor, "_exps.");
  }
  return false;
}

bool holds(Where where, const ModelConfig& config, int64_t layer, bool has_importance) {
  const int64_t layers = config.layer_count(), eighth = layers / 8;
  switch (where) {
    case kEverywhere:
      return true;
    case kGrouped:
      return config.heads / config.kv_heads >= 4;
    case kFirstTwo:
      return layer < 2;
    case kFirstFour:
      return layer < 4;
    case kFirst16th:
      return layer < layers / 16;
    case kFirst8th:
      return layer < eighth;
    case kFirst8thBlind:
      return layer < eighth && !has_importance;
    case kFirst8thGuided:
      return layer < eighth && has_importance;
    case kMoreBits:
      return layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
  }
  return false;
}

// The output matrix, or the embedding that serves as one: every token passes it, and a wrong
// logit is a wrong token.
DType output_type(const Mixture& mixture, int64_t cols) {
  const bool fits = cols % dtype_info(mixture.base).block_values == 0;
  return mixture.base == kQ8_0 || !fits ? kQ8_0 : kQ6_K;
}

DType layer_type(const Mixture& mixture, const ModelConfig& config, std::string_view tensor,
                 int64_t layer, bool has_importance) {
  // With eight experts attention is a small part of the model, and better types cost little.
  if (config.experts == 8) {
    if (is_part(tensor, ".attn_v.") || is_part(tensor, ".attn_k.")) return kQ8_0;
    constexpr std::string_view kRaised[] = {"q2_k",   "q3_k_s", "q3_k_m", "q4_k_s",
                                            "q4_k_m", "iq4_nl", "iq4_xs"};
    if (is_part(tensor, ".attn_output.")) {
      const bool raised =
          std::find(std::begin(kRaised), std::end(kRaised), mixture.name) != std::end(kRaised);
      return raised ? kQ5_K : mixture.base;
    }
  }
  DType type = mixture.base;
  for (const Rule& rule : rules_of(mixture)) {
    if (!concerns(rule.part, tensor) || !holds(rule.where, config, layer, has_importance)) continue;
    type = rule.type;
    break;
  }
  // 70B: eight query heads share a value head, so the matrix is an eighth of its neighbours.
  const bool is_70b = config.architecture == "llama" && config.layer_count() == 80 &&
                      config.heads != config.kv_heads;
  if (is_70b && is_part(tensor, ".attn_v.") && (type == kQ3_K || type == kQ4_K)) return kQ5_K;
  return type;
}

}  // namespace

Mixture::Mixture(DType type) : name(dtype_name(type)), base(type), file_type(1024), pure(true) {
  // The number of the mixture around this type: other programs show it as the file's kind. 1024 is
  // "guessed" in their words.
  for (const auto& [mixture, rules] : kRecipes) {
    if (mixture.base == type && mixture.name != "mxfp4_moe") file_type = mixture.file_type;
  }
}

std::optional<Mixture> mixture_from_name(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const Alias& alias : kAliases) {
    if (lower == alias.name) lower = alias.means;
  }
  for (const Recipe& recipe : kRecipes) {
    if (recipe.mixture.name == lower) return recipe.mixture;
  }
  return std::nullopt;
}

std::string mixture_names() {
  std::string out;
  for (const Recipe& recipe : kRecipes) {
    out += (out.empty() ? "" : ", ") + std::string(recipe.mixture.name);
  }
  return out;
}

bool stays_float(std::string_view tensor, std::span<const int64_t> shape) {
  if (shape.size() < 2 || !tensor.ends_with(".weight")) return true;
  if (tensor == "token_embd.weight" || tensor == "output.weight") return false;
  if (is_vision_tensor(tensor)) return tensor.starts_with("v.") && !tensor.starts_with("v.blk.");
  return !layer_of(tensor) || tensor.ends_with("_norm.weight") || is_part(tensor, ".ffn_gate_inp.");
}

DType fitting_type(DType type, int64_t cols) {
  const auto fits = [&](DType t) { return cols % dtype_info(t).block_values == 0; };
  if (fits(type)) return type;
  DType next = kF16;
  if (type == kQ2_K || type == kQ3_K) next = kQ4_0;
  if (type == kQ4_K) next = kQ5_0;
  if (type == kQ5_K) next = kQ5_1;
  if (type == kQ6_K) next = kQ8_0;
  if (type == kIQ4_XS) next = kIQ4_NL;
  return fits(next) ? next : kF16;
}

DType mixture_type(const Mixture& mixture, const ModelConfig& config, std::string_view tensor,
                   std::span<const int64_t> shape, bool has_importance) {
  if (stays_float(tensor, shape)) return kF32;
  DType type = mixture.base;
  if (!mixture.pure && is_quantized(mixture.base)) {
    if (is_vision_tensor(tensor)) return fitting_type(kQ8_0, shape.back());
    const std::string_view output = config.tied_embeddings ? "token_embd.weight" : "output.weight";
    if (tensor == output) {
      type = output_type(mixture, shape.back());
    } else if (const auto layer = layer_of(tensor)) {
      type = layer_type(mixture, config, tensor, *layer, has_importance);
    }
  }
  return fitting_type(type, shape.back());
}

}  // namespace drover
