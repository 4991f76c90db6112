// What a model is: everything about its shape and mathematics that is not a weight. One decoder
// serves the whole family, driven by these fields; what tells Scout from Maverick, from a dense
// Llama 3 or from an Edge configuration is data, per layer where the family has it per layer.
//
// A ModelConfig is read from a file, validated once, and never changed. Plain data, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cache/kv_cache.h"

namespace boost::json {
class object;
}

namespace drover {

class GgufFile;

// How the rotary frequencies were stretched for longer contexts.
struct RopeScaling {
  enum class Kind {
    kNone,
    kLinear,   // all frequencies divided by factor
    kLlama3,   // spec section 1.4: only the slow ones
    kFactors,  // a divisor per pair, as stored in a GGUF file (rope_freqs.weight)
  };
  Kind kind = Kind::kNone;
  double factor = 1;
  double low = 1;
  double high = 1;
  double original_context = 0;
};

struct LayerConfig {
  bool rope = true;     // rotates queries and keys; without it the layer has no positions (NoPE)
  bool chunked = true;  // attends inside its chunk only; otherwise to the whole past
  bool moe = false;     // routed experts beside the shared one; otherwise one dense network

  bool operator==(const LayerConfig&) const = default;
};

struct ModelConfig {
  std::string architecture;  // "llama4" or "llama", as GGUF names them
  std::string name;          // what the file calls itself; may be empty

  int64_t vocab = 0;         // V
  int64_t hidden = 0;        // D
  int64_t heads = 0;         // H
  int64_t kv_heads = 0;      // K
  int64_t head_dim = 0;      // d; H * d need not be D
  int64_t dense_width = 0;   // M, inner size of dense layers, 0 if there is none
  int64_t expert_width = 0;  // F, inner size of routed and shared experts, 0 if no layer is MoE
  int64_t experts = 0;       // E, 0 if no layer is MoE
  int64_t experts_used = 0;  // k of top-k
  int64_t context = 0;       // the longest context the model was made for, tokens
  float norm_eps = 0;

  std::vector<LayerConfig> layers;
  int64_t chunk = 0;     // tokens of local attention; 0 if no layer is chunked
  bool qk_norm = false;  // weightless norm of rotated queries and keys, on rope layers

  // Queries of layers without rope grow with position (spec section 1.6).
  bool temperature_tuning = false;
  float floor_scale = 8192;
  float attn_scale = 0.1f;

  double rope_theta = 0;
  RopeScaling rope_scaling;
  std::vector<float> rope_frequencies;  // [d/2], radians per token, scaling applied

  bool tied_embeddings = false;  // the output matrix is the embedding matrix

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  CacheLayout cache_layout(DType type) const;

  // Whether what a chunk leaves to later ones follows from its own tokens, wherever it stands (with
  // positions modulo the chunk): there is one global layer, its keys have no positions, and no
  // layer before it knows where the chunk begins.
  bool chunks_stand_alone() const;
};

// The factor of a query at this position on a layer without rope:
// 1 + attn_scale * ln(1 + floor((p + 1) / floor_scale)), in float32.
float query_temperature(const ModelConfig& config, int64_t position);

// From the metadata of a GGUF file of architecture llama4 or llama; any other is kUnsupported with
// its name. Keys that the family's files do not carry get the family's defaults (spec 9.2).
ModelConfig config_from_gguf(const GgufFile& file);

// From a Hugging Face config.json, text-only or multimodal, in the older or the newer spelling.
// Fields that are absent have the defaults of the reference's configuration class (spec 1.1).
// `source` names the file in errors.
ModelConfig config_from_huggingface(const boost::json::object& json, const std::string& source);

// Fills `rope_frequencies` from theta and scaling (kNone, kLinear or kLlama3). Float32, as the
// reference: theta^(-2k/d), then spec section 1.4.
void set_rope_frequencies(ModelConfig& config);

// Sets the sizes that no layer uses to 0: chunk, dense_width, or the experts'. Files carry them all
// the same, and what is not used need not make sense.
void drop_unused(ModelConfig& config);

// Checks every size and relation; kBadData that names the field in the words of `source`'s format.
void validate(const ModelConfig& config, const std::string& source);

// Parameters in all, and those that take part in computing one token (shared and chosen experts,
// attention, norms, router, embedding row and output matrix counted whole as the model cards do).
struct ParameterCount {
  int64_t total = 0;
  int64_t active = 0;
};
ParameterCount count_parameters(const ModelConfig& config);

}  // namespace drover
