// Log-probabilities of tokens, as the model itself sees them: softmax of its logits as they are,
// before bias, penalties, temperature and cuts. So they are those that `drover score` sums, and the
// same whatever a request's sampling is. (vLLM's default, logprobs_mode "raw_logprobs"; the OpenAI
// API does not say.)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "text/vocabulary.h"

namespace drover {

struct TokenLogprob {
  Token token = 0;
  double logprob = 0;

  bool operator==(const TokenLogprob&) const = default;
};

// What was chosen, and what was most probable in its place.
struct ChoiceLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // most probable first, of equals the lower token

  bool operator==(const ChoiceLogprobs&) const = default;
};

// As many as the OpenAI API gives.
inline constexpr int64_t kMostTopLogprobs = 20;

// ln sum e^logit, in double, summed in order of token. NaN if a logit is.
double log_sum_exp(std::span<const float> logits);

// logits: [V], chosen < V, 0 <= top. One exponential for each token of the vocabulary.
ChoiceLogprobs logprobs_of(std::span<const float> logits, Token chosen, int64_t top);

}  // namespace drover
