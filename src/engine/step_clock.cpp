#include "engine/step_clock.h"

#include <algorithm>

namespace drover {
namespace {

// The part of a step's time that prompts may take from answers that are being written.
constexpr double kPromptShare = 0.4;
// Seconds beyond that share that short prompts may take: a burst of questions is read
// at once, so that each of them hears its first token soon, and no crowd of them holds up answers
// for longer. What was taken comes back while prompts take less than their share.
constexpr double kHeadStart = 3;
// Of these so many tokens in a step: enough to be read as fast as any, and few enough that answers
// come forward between them, the first of the burst's among them.
constexpr int64_t kAheadInStep = 512;
// Tokens of prompts in a step, at least: a prompt always comes forward.
constexpr int64_t kSmallestSlice = 16;
// After so many steps with prompts in them the time of answers alone is measured again: soon at
// first, since a crowd's first step may be a slow one, and then less and less often.
constexpr int64_t kFirstProbe = 2, kStepsPerProbe = 64;

}  // namespace

StepClock::StepClock(int64_t batch) : batch_(batch), head_start_(kHeadStart) {}

// Whether the time of a step of about so many answers is known.
bool StepClock::is_crowd_known(int64_t answers) const {
  return answers_seconds_ > 0 && answers <= 2 * answers_then_ && 2 * answers >= answers_then_;
}

int64_t StepClock::prompt_budget(int64_t answers) const {
  if (answers == 0) return batch_;
  // The time of the answers alone must be known, and not from another crowd or long ago.
  const bool known = is_crowd_known(answers) && steps_since_ < probe_after_;
  if (!known) return 0;
  if (token_seconds_ <= 0) return kSmallestSlice;
  const double tokens = answers_seconds_ * kPromptShare / (1 - kPromptShare) / token_seconds_;
  return std::min(std::max(static_cast<int64_t>(std::min(tokens, 1e9)), kSmallestSlice), batch_);
}

int64_t StepClock::ahead() const {
  if (token_seconds_ <= 0) return kAheadInStep;
  return static_cast<int64_t>(
      std::min(head_start_ / token_seconds_, static_cast<double>(kAheadInStep)));
}

void StepClock::learn(int64_t answers, int64_t prompt_tokens, double seconds) {
  ++steps_since_;
  if (answers == 0) {
    head_start_ = kHeadStart;
  } else {
    const double prompts = prompt_tokens > 0 ? std::max(seconds - answers_seconds_, 0.0) : 0.0;
    head_start_ = std::clamp(head_start_ + kPromptShare * seconds - prompts, 0.0, kHeadStart);
  }
  if (prompt_tokens == 0) {
    // One step that the system held up does not pass for all: it counts half as much again at most.
    const bool again = is_crowd_known(answers);
    answers_seconds_ = again ? std::min(seconds, 1.5 * answers_seconds_) : seconds;
    probe_after_ = again ? std::min(2 * probe_after_, kStepsPerProbe) : kFirstProbe;
    answers_then_ = answers;
    steps_since_ = 0;
  } else if (answers > 0 || prompt_tokens >= kSmallestSlice) {
    const double own = answers > 0 ? std::max(seconds - answers_seconds_, 0.0) : seconds;
    const double now = own / static_cast<double>(prompt_tokens);
    token_seconds_ = token_seconds_ > 0 ? 0.7 * token_seconds_ + 0.3 * now : now;
  }
}

}  // namespace drover
