#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>

namespace drover {

double log_sum_exp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

ChoiceLogprobs logprobs_of(std::span<const float> logits, Token chosen, int64_t top) {
  // The best so far, as many as are wanted: few, so one more is put in its place by hand.
  std::vector<Token> best;
  best.reserve(static_cast<size_t>(top) + 1);
  for (size_t i = 0; i < logits.size() && top > 0; ++i) {
    const float logit = logits[i];
    const bool full = static_cast<int64_t>(best.size()) == top;
    if (std::isnan(logit) || (full && !(logit > logits[best.back()]))) continue;
    const auto less = [&](float value, Token token) { return value > logits[token]; };
    best.insert(std::upper_bound(best.begin(), best.end(), logit, less), static_cast<Token>(i));
    if (full) best.pop_back();
  }
  const double all = log_sum_exp(logits);
  const auto entry = [&](Token token) { return TokenLogprob{token, logits[token] - all}; };
  ChoiceLogprobs out{entry(chosen), {}};
  for (const Token token : best) out.top.push_back(entry(token));
  return out;
}

}  // namespace drover
