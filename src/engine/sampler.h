// From logits to the next token.
//
// The steps, in order: penalties, temperature, top-k, top-p, min-p, draw. Temperature comes before
// the cuts, as in the reference's generation and in the OpenAI API. The random number of a draw is
// a function of the seed and of the token's position alone, so a request's text does not depend on
// what else the program does.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "text/vocabulary.h"

namespace drover {

struct SamplingOptions {
  float temperature = 0.6f;        // 0: always the most probable token
  int64_t top_k = 0;               // keep the k most probable; 0 keeps all
  float top_p = 0.9f;              // keep the fewest that hold this much probability; 1 keeps all
  float min_p = 0.0f;              // drop what is less probable than min_p times the best
  float repeat_penalty = 1.0f;     // > 1 makes tokens of the recent text less likely
  int64_t repeat_last_n = 64;      // how much text counts as recent; -1: all of it
  float presence_penalty = 0.0f;   // off the logit of any token already in the answer
  float frequency_penalty = 0.0f;  // off the logit, for each time it is in the answer
  uint64_t seed = 0;
};

// Throws kUsage naming the option that is out of range.
void validate(const SamplingOptions& options);

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);

  // The token for this position. logits: [V]; changed when penalties are on. `text` is all tokens
  // so far, the last `answer` of which are the answer's. Of equal logits the lower token wins. A
  // NaN logit is never chosen; if all are, kBadData.
  Token sample(std::span<float> logits, std::span<const Token> text, int64_t answer,
               int64_t position);

 private:
  struct Candidate {
    Token token;
    float logit;
    double weight;
  };

  void penalise(std::span<float> logits, std::span<const Token> text, int64_t answer) const;

  SamplingOptions options_;
  std::vector<Candidate> candidates_;  // kept for its memory
};

// A number in [0, 1) from seed and position.
double draw(uint64_t seed, int64_t position);

}  // namespace drover
