// How often a model answers what a source asks: its examples' first questions, greedily, and the
// answer letter by letter. Beside the score stand controls, which say how much of it is sight: the
// same questions without their picture, with another question's picture, and the answer that each
// question has most often.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/progress.h"
#include "engine/engine.h"
#include "engine/picture_encoder.h"
#include "train/example.h"

namespace drover {

struct Question {
  std::vector<Token> prompt;  // up to the answer
  std::vector<TiledImage> pictures;
  std::string text;      // what stands between the last picture and the answer, for messages
  std::string expected;  // the answer, without the token that ends it
};

// The first question of an example. kBadData if it has no answer that is learnt.
Question first_question(const Example& example, const Tokenizer& tokenizer);

// Where the share of right answers to all such questions lies, with 95 % certainty, when `share` of
// `trials` were right. It does not shrink to a point at 0 or 1. Everything, if there are no trials.
// Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
struct Interval {
  double low = 0, high = 0;
};
Interval interval_95(double share, int64_t trials);

struct QuestionScore {
  int64_t asked = 0;
  double right = 0;  // shares of `asked`
  // Shares too; -1 where a question has no picture.
  double without_picture = -1;
  double other_picture = -1;
  // If each question were given the answer that it has most often in as many other examples; the
  // most frequent of all answers, where it is not among these.
  double most_frequent = 0;
  struct Miss {
    std::string question, expected, answer;
  };
  std::vector<Miss> misses;  // the first few
};

struct QuestionOptions {
  uint64_t seed = 1;
  int64_t examples = 500;
  int64_t length = 4096;   // of an example, at most
  int64_t controls = 500;  // questions that are also asked without and with another picture
  int64_t misses = 8;
};

// Asks examples 0, 1, ... of the source; as many that follow say what is answered most often. The
// encoder must be one of the engine's context; both are used from here alone meanwhile. Progress
// counts questions. Throws what asking throws.
QuestionScore score_questions(Engine& engine, PictureEncoder* encoder, const Tokenizer& tokenizer,
                              const Source& source, const QuestionOptions& options,
                              const Progress& progress = {});

}  // namespace drover
