#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"

namespace drover {

void validate(const SamplingOptions& o) {
  const auto check = [](bool ok, std::string_view name, std::string_view expected, double got) {
    if (!ok) throw_error(ErrorKind::kUsage, "{}: expected {}, got {}", name, expected, got);
  };
  check(o.temperature >= 0 && std::isfinite(o.temperature), "temperature", "0 or more",
        o.temperature);
  check(o.top_k >= 0, "top_k", "0 or more", static_cast<double>(o.top_k));
  check(o.top_p > 0 && o.top_p <= 1, "top_p", "more than 0 and at most 1", o.top_p);
  check(o.min_p >= 0 && o.min_p <= 1, "min_p", "0 to 1", o.min_p);
  check(o.repeat_penalty > 0 && std::isfinite(o.repeat_penalty), "repeat_penalty", "more than 0",
        o.repeat_penalty);
  check(o.repeat_last_n >= -1, "repeat_last_n", "-1 or more", static_cast<double>(o.repeat_last_n));
  check(std::isfinite(o.presence_penalty), "presence_penalty", "a number", o.presence_penalty);
  check(std::isfinite(o.frequency_penalty), "frequency_penalty", "a number", o.frequency_penalty);
  check(o.logit_bias.size() <= kMostBiases, "logit_bias", fmt::format("at most {}", kMostBiases),
        static_cast<double>(o.logit_bias.size()));
  for (const auto& [token, bias] : o.logit_bias) {
    check(token >= 0, "logit_bias", "tokens of 0 or more", token);
    check(bias >= -100 && bias <= 100, "logit_bias", "-100 to 100", bias);
  }
}

double draw(uint64_t seed, int64_t position) {
  // splitmix64 (Steele, Lea & Flood 2014), with the position as the counter.
  uint64_t z = seed + 0x9e3779b97f4a7c15ull * (static_cast<uint64_t>(position) + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

Sampler::Sampler(const SamplingOptions& options) : options_(options) { validate(options); }

void Sampler::bias(std::span<float> logits) const {
  for (const auto& [token, bias] : options_.logit_bias) {
    logits[token] = bias <= kBan ? -INFINITY : logits[token] + bias;
  }
}

void Sampler::penalise(std::span<float> logits, std::span<const Token> text, int64_t answer) const {
  const SamplingOptions& o = options_;
  if (o.repeat_penalty != 1.0f && o.repeat_last_n != 0) {
    const size_t n =
        o.repeat_last_n < 0 ? text.size() : std::min<size_t>(text.size(), o.repeat_last_n);
    const std::unordered_set<Token> recent(text.end() - n, text.end());
    for (const Token token : recent) {
      float& logit = logits[token];
      logit = logit > 0 ? logit / o.repeat_penalty : logit * o.repeat_penalty;
    }
  }
  if (o.presence_penalty != 0.0f || o.frequency_penalty != 0.0f) {
    std::unordered_map<Token, int64_t> counts;
    for (const Token token : text.last(answer)) ++counts[token];
    for (const auto& [token, count] : counts) {
      logits[token] -= o.presence_penalty + o.frequency_penalty * static_cast<float>(count);
    }
  }
}

Token Sampler::sample(std::span<float> logits, std::span<const Token> text, int64_t answer,
                      int64_t position) {
  bias(logits);
  penalise(logits, text, answer);
  if (options_.constraint) options_.constraint(text.last(answer), logits);
  const auto never = [&](size_t i) { return !(logits[i] > -INFINITY); };
  Token best = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (never(i)) continue;
    if (best < 0 || logits[i] > logits[best]) best = static_cast<Token>(i);
  }
  if (best < 0 && (options_.constraint || !options_.logit_bias.empty())) {
    throw_error(ErrorKind::kUsage, "{}: expected to leave a token at position {}, got none",
                options_.constraint ? "constraint" : "logit_bias", position);
  }
  if (best < 0) {
    throw Error(
        ErrorKind::kBadData,
        fmt::format("logits at position {}: expected numbers, got NaN or -infinity for every token",
                    position),
        "the weights are damaged, or their type cannot hold this model's values");
  }
  if (options_.temperature == 0.0f || options_.top_k == 1) return best;

  // Weights relative to the best token. What is below `floor` cannot be chosen: min-p drops it, or
  // all such tokens together hold less than the 1 - top_p that top-p leaves out, since there are
  // fewer than V of them and the best alone holds 1. So only few tokens need to be sorted.
  // Not with top-k: its best k must all be there, since top-p and min-p then look at those alone.
  const double scale = 1.0 / options_.temperature;
  const bool cut_k = options_.top_k > 0;
  double floor = cut_k ? 0.0 : options_.min_p;
  if (!cut_k && options_.top_p < 1.0f) {
    floor = std::max(floor, (1.0 - options_.top_p) / static_cast<double>(logits.size()));
  }
  candidates_.clear();
  double all = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (never(i)) continue;
    const double weight = std::exp((static_cast<double>(logits[i]) - logits[best]) * scale);
    all += weight;
    if (weight >= floor || static_cast<Token>(i) == best) {
      candidates_.push_back({static_cast<Token>(i), logits[i], weight});
    }
  }
  const auto more_probable = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const int64_t most = static_cast<int64_t>(candidates_.size());
  const auto end = candidates_.begin() + (cut_k ? std::min(options_.top_k, most) : most);
  std::partial_sort(candidates_.begin(), end, candidates_.end(), more_probable);
  candidates_.erase(end, candidates_.end());
  if (cut_k) {
    all = 0;
    for (const Candidate& c : candidates_) all += c.weight;
  }

  double kept = 0;
  size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < options_.top_p * all)) {
    if (count > 0 && candidates_[count].weight < options_.min_p) break;
    kept += candidates_[count++].weight;
  }
  const double target = draw(options_.seed, position) * kept;
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += candidates_[i].weight;
    if (target < sum) return candidates_[i].token;
  }
  return candidates_[count - 1].token;
}

}  // namespace drover
