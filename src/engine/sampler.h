// From logits to the next token.
//
// The steps, in order: bias, penalties, constraint, temperature, top-k, top-p, min-p, draw.
// Temperature comes before the cuts, as in the reference's generation and in the OpenAI API. The
// random number of a draw is a function of the seed and of the token's position alone, so a
// request's text does not depend on what else the program does.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "text/vocabulary.h"

namespace drover {

// What may come next: sets the logits of tokens that may not to -infinity. `answer` is what was
// drawn so far. Every answer has a copy of its own, which is asked once for each of its tokens in
// turn, on the thread that owns the model.
using Constraint = std::function<void(std::span<const Token> answer, std::span<float> logits)>;

// A bias of this or less bans its token outright, as in the OpenAI API.
inline constexpr float kBan = -100.0f;
inline constexpr size_t kMostBiases = 4096;

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
  std::vector<std::pair<Token, float>> logit_bias = {};  // added first, -100 to 100; see kBan
  Constraint constraint = {};
};

// Throws kUsage naming the option that is out of range. Tokens of logit_bias are only compared with
// zero: how many there are, the sampler does not know.
void validate(const SamplingOptions& options);

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);

  // The token for this position. logits: [V]; changed by bias, penalties and constraint. `text` is
  // all tokens so far, the last `answer` of which are the answer's. Of equal logits the lower token
  // wins. A logit of NaN or -infinity is never chosen; if all are that, kUsage where bias or
  // constraint may have done it, else kBadData.
  Token sample(std::span<float> logits, std::span<const Token> text, int64_t answer,
               int64_t position);

 private:
  struct Candidate {
    Token token;
    float logit;
    double weight;
  };

  void bias(std::span<float> logits) const;
  void penalise(std::span<float> logits, std::span<const Token> text, int64_t answer) const;

  SamplingOptions options_;
  std::vector<Candidate> candidates_;  // kept for its memory
};

// A number in [0, 1) from seed and position.
double draw(uint64_t seed, int64_t position);

}  // namespace drover
