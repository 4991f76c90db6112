// What is asked of a model, and what comes back.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "engine/prompt.h"
#include "engine/sampler.h"
#include "kernels/attention/attention.h"
#include "tensor/view.h"

namespace drover {

struct GenerateOptions {
  SamplingOptions sampling = {};
  int64_t max_tokens = -1;              // -1: until the model stops or the context is full
  std::vector<std::string> stop = {};   // strings that end the answer and are not part of it
  std::vector<Token> stop_tokens = {};  // as the chat format and the model say
  bool show_special = false;            // control tokens appear in the text
};

enum class FinishReason { kStop, kLength, kContext, kCancelled, kDeadline };
// "stop", "length", "context", "cancelled", "deadline"
std::string_view finish_reason_name(FinishReason reason);

struct Answer {
  std::string text;
  std::vector<Token> tokens;  // without the token that ended it
  FinishReason finish = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, not computed again
  double prompt_seconds = 0;  // from where its reading began
  double answer_seconds = 0;
  PageVisits visits;  // of global layers, where not all pages are wanted
};

// What a request tells while it is worked on, on the thread that owns the model: whoever listens
// must be quick. Every member may be empty.
struct Listener {
  Progress prompt;                             // tokens of the prompt read so far
  std::function<void(std::string_view)> text;  // the next piece of the answer, whole code points
  const std::atomic<bool>* cancel = nullptr;   // looked at between steps and layers
};

struct Request {
  Prompt prompt;
  GenerateOptions options;
  int64_t samples = 1;  // answers to the same prompt, number i drawn with seed + i
  int priority = 0;     // higher goes first; of equals the one that came first
  std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt;
  // What was read for one salt is never shared with another.
  std::string salt = {};
};

// Like a Listener's, for all answers of a request.
struct Events {
  Progress prompt;
  std::function<void(int64_t sample, std::string_view piece)> text;
  // The last thing that is heard: all answers, or what went wrong.
  std::function<void(std::vector<Answer> answers, std::exception_ptr error)> done;
  const std::atomic<bool>* cancel = nullptr;
};

// Gets the logits of tokens first, first + 1, ... of a prompt; the view lasts for the call.
using EachLogits = std::function<void(int64_t first, ConstMatrixView logits)>;

}  // namespace drover
