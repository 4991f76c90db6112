#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace drover {

CacheLayout ModelConfig::cache_layout(DType type) const {
  CacheLayout layout{
      .kv_heads = kv_heads, .head_dim = head_dim, .chunked = {}, .chunk = chunk, .type = type};
  for (const LayerConfig& layer : layers) layout.chunked.push_back(layer.chunked);
  return layout;
}

bool ModelConfig::chunks_stand_alone() const {
  const auto global = std::find_if(layers.begin(), layers.end(),
                                   [](const LayerConfig& layer) { return !layer.chunked; });
  if (global == layers.end() || global->rope) return false;
  const bool one = std::all_of(std::next(global), layers.end(),
                               [](const LayerConfig& layer) { return layer.chunked; });
  // Where there is no rope, queries grow with their position in the text.
  return one && std::all_of(layers.begin(), global, [&](const LayerConfig& layer) {
           return layer.rope || !temperature_tuning;
         });
}

float query_temperature(const ModelConfig& config, int64_t position) {
  const float periods = std::floor((static_cast<float>(position) + 1.0f) / config.floor_scale);
  return 1.0f + config.attn_scale * std::log(1.0f + periods);
}

void set_rope_frequencies(ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  config.rope_frequencies.clear();
  for (int64_t k = 0; k < config.head_dim / 2; ++k) {
    const float exponent = static_cast<float>(2 * k) / static_cast<float>(config.head_dim);
    float f = 1.0f / std::pow(static_cast<float>(config.rope_theta), exponent);
    if (scaling.kind == RopeScaling::Kind::kLinear) f /= static_cast<float>(scaling.factor);
    if (scaling.kind == RopeScaling::Kind::kLlama3) {
      const double wavelength = 2 * std::numbers::pi / f;
      const double longest_kept = scaling.original_context / scaling.high;
      const double longest_blended = scaling.original_context / scaling.low;
      if (wavelength > longest_blended) {
        f = static_cast<float>(f / scaling.factor);
      } else if (wavelength >= longest_kept && scaling.high != scaling.low) {
        const double t =
            (scaling.original_context / wavelength - scaling.low) / (scaling.high - scaling.low);
        f = static_cast<float>((1 - t) * f / scaling.factor + t * f);
      }
    }
    config.rope_frequencies.push_back(f);
  }
}

void drop_unused(ModelConfig& c) {
  const auto none = [&](auto is) { return std::none_of(c.layers.begin(), c.layers.end(), is); };
  if (none([](const LayerConfig& layer) { return layer.chunked; })) c.chunk = 0;
  if (none([](const LayerConfig& layer) { return !layer.moe; })) c.dense_width = 0;
  if (none([](const LayerConfig& layer) { return layer.moe; })) {
    c.expert_width = c.experts = c.experts_used = 0;
  }
}

void validate(const ModelConfig& c, const std::string& source) {
  const auto in_range = [&](std::string_view what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      throw_error(ErrorKind::kBadData, "{}: {}: expected {} to {}, got {}", source, what, low, high,
                  value);
    }
  };
  // Far above any model of the family, and small enough that products of two stay far from 2^63.
  constexpr int64_t kMost = int64_t{1} << 24;
  in_range("vocabulary size", c.vocab, 1, kMost);
  in_range("hidden size", c.hidden, 1, kMost);
  in_range("number of layers", c.layer_count(), 1, 4096);
  in_range("number of query heads", c.heads, 1, 65536);
  in_range("number of key and value heads", c.kv_heads, 1, c.heads);
  in_range("head dimension", c.head_dim, 2, kMaxHeadDim);
  in_range("context length", c.context, 1, int64_t{1} << 40);
  if (c.heads % c.kv_heads != 0) {
    throw_error(ErrorKind::kBadData,
                "{}: expected query heads to be a multiple of the {} key and "
                "value heads, got {}",
                source, c.kv_heads, c.heads);
  }
  if (c.head_dim % 2 != 0) {
    throw_error(ErrorKind::kBadData, "{}: head dimension: expected an even number, got {}", source,
                c.head_dim);
  }
  const bool any_moe = std::any_of(c.layers.begin(), c.layers.end(), [](auto& l) { return l.moe; });
  const bool any_dense =
      std::any_of(c.layers.begin(), c.layers.end(), [](auto& l) { return !l.moe; });
  const bool any_chunked =
      std::any_of(c.layers.begin(), c.layers.end(), [](auto& l) { return l.chunked; });
  if (any_dense) in_range("feed-forward size of dense layers", c.dense_width, 1, kMost);
  if (any_moe) {
    in_range("feed-forward size of experts", c.expert_width, 1, kMost);
    in_range("number of experts", c.experts, 1, 65536);
    in_range("number of experts used", c.experts_used, 1, c.experts);
  }
  if (any_chunked) in_range("attention chunk size", c.chunk, 1, int64_t{1} << 40);
  const auto finite_positive = [&](std::string_view what, double value) {
    if (!(value > 0) || !std::isfinite(value)) {
      throw_error(ErrorKind::kBadData, "{}: {}: expected a positive number, got {}", source, what,
                  value);
    }
  };
  finite_positive("norm epsilon", c.norm_eps);
  finite_positive("rope theta", c.rope_theta);
  if (c.temperature_tuning) {
    finite_positive("floor_scale of the attention temperature", c.floor_scale);
    if (!std::isfinite(c.attn_scale)) {
      throw_error(ErrorKind::kBadData, "{}: attn_scale: expected a number, got {}", source,
                  c.attn_scale);
    }
  }
  if (c.rope_scaling.kind != RopeScaling::Kind::kNone) {
    finite_positive("rope scaling factor", c.rope_scaling.factor);
  }
  if (c.rope_scaling.kind == RopeScaling::Kind::kLlama3) {
    finite_positive("rope scaling low_freq_factor", c.rope_scaling.low);
    finite_positive("rope scaling high_freq_factor", c.rope_scaling.high);
    finite_positive("rope scaling original_max_position_embeddings",
                    c.rope_scaling.original_context);
  }
  // With these two, counting parameters and cache bytes stays inside 64 bits.
  const double layers = static_cast<double>(c.layer_count());
  const double attention = 2.0 * c.hidden * c.head_dim * (c.heads + c.kv_heads);
  const double networks =
      3.0 * c.hidden * std::max<double>(c.dense_width, c.expert_width) * (2 + c.experts);
  const double parameters = layers * (attention + networks) + 2.0 * c.vocab * c.hidden;
  if (parameters > 0x1p60) {
    throw_error(ErrorKind::kBadData,
                "{}: expected sizes that make at most 2^60 parameters, got {:.3g}", source,
                parameters);
  }
  const double cache = 8.0 * layers * c.kv_heads * c.head_dim * (c.context + 65536.0);
  if (cache > 0x1p60) {
    throw_error(
        ErrorKind::kBadData,
        "{}: expected sizes that make a cache of at most 2^60 bytes at full context, got {:.3g}",
        source, cache);
  }
  DROVER_CHECK(static_cast<int64_t>(c.rope_frequencies.size()) == c.head_dim / 2);
  for (const float f : c.rope_frequencies) {
    if (!std::isfinite(f)) {
      throw_error(ErrorKind::kBadData, "{}: rope frequencies: expected finite numbers, got {}",
                  source, f);
    }
  }
}

ParameterCount count_parameters(const ModelConfig& c) {
  ParameterCount count;
  const int64_t attention =
      2 * c.hidden * c.heads * c.head_dim + 2 * c.hidden * c.kv_heads * c.head_dim;
  for (const LayerConfig& layer : c.layers) {
    const int64_t shared = 3 * c.hidden * (layer.moe ? c.expert_width : c.dense_width);
    int64_t always = attention + 2 * c.hidden + shared;
    if (layer.moe) always += c.hidden * c.experts;
    count.total += always + (layer.moe ? c.experts * shared : 0);
    count.active += always + (layer.moe ? c.experts_used * shared : 0);
  }
  const int64_t ends = c.vocab * c.hidden * (c.tied_embeddings ? 1 : 2) + c.hidden;
  count.total += ends;
  count.active += ends;
  return count;
}

}  // namespace drover
