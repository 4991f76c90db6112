// How much of a step prompts may take from answers that are being written, by the time that steps
// took so far. Answers keep the larger part of their speed; a burst of short prompts is read at
// once, out of a head start that comes back while prompts take less than their share.
//
// Plain arithmetic on what it is told. One thread at a time.
#pragma once

#include <cstdint>

namespace drover {

class StepClock {
 public:
  // batch: tokens of a step, at most.
  explicit StepClock(int64_t batch);

  // Tokens of prompts that a step takes beside so many answers. 0 when the time of the answers
  // alone has to be measured first.
  int64_t prompt_budget(int64_t answers) const;
  // Tokens of short prompts that may go ahead of answers beyond that.
  int64_t ahead() const;
  // A step of so many answers and tokens of prompts took so long.
  void learn(int64_t answers, int64_t prompt_tokens, double seconds);

 private:
  bool is_crowd_known(int64_t answers) const;

  const int64_t batch_;
  // Seconds of a step of answers alone, and of one more token of a prompt.
  double answers_seconds_ = 0;
  double token_seconds_ = 0;
  double head_start_;  // left of it
  int64_t answers_then_ = 0;
  int64_t steps_since_ = 0;
  int64_t probe_after_ = 0;
};

}  // namespace drover
