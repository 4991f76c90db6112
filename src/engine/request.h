// What is asked of a model, and what comes back.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "engine/logprobs.h"
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
  std::vector<Token> shown = {};  // these do in any case: a tool call's markers, for its parser
  // Log-probabilities of each token of the answer, or of the prompt, and of so many of the most
  // probable in its place (0 to kMostTopLogprobs); unset: none. Those of the prompt want all of it
  // read: nothing that is known is reused.
  std::optional<int64_t> logprobs = std::nullopt;
  std::optional<int64_t> prompt_logprobs = std::nullopt;
};

enum class FinishReason { kStop, kLength, kContext, kCancelled, kDeadline };
// "stop", "length", "context", "cancelled", "deadline"
std::string_view finish_reason_name(FinishReason reason);

struct Answer {
  std::string text;
  std::vector<Token> tokens;  // without the stop token that ended it
  FinishReason finish = FinishReason::kStop;
  std::optional<Token> stop_token = std::nullopt;
  std::optional<std::string> stop_string = std::nullopt;  // of GenerateOptions::stop, likewise
  // If asked for: of each of `tokens`, and of the stop token after them.
  std::vector<ChoiceLogprobs> logprobs = {};
  // If asked for: of each token of the prompt but the first, before which there is nothing. All
  // answers share them.
  std::shared_ptr<const std::vector<ChoiceLogprobs>> prompt_logprobs = nullptr;
  std::vector<float> embedding = {};  // of RequestKind::kEmbedding
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

enum class RequestKind {
  kAnswer,
  // What the model makes of the prompt as a whole, [D] and of length 1: the mean over all positions
  // of the last hidden states after the final norm. The sum is in double, in order of position, so
  // its bits do not depend on how the prompt was cut. Of the options none matters; nothing that is
  // known is reused, and nothing is kept.
  kEmbedding,
};

struct Request {
  Prompt prompt;
  GenerateOptions options = {};
  int64_t samples = 1;  // answers to the same prompt, number i drawn with seed + i
  int priority = 0;     // higher goes first; of equals the one that came first
  std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt;
  // What was read for one salt is never shared with another.
  std::string salt = {};
  RequestKind kind = RequestKind::kAnswer;
};

// A token of an answer as it is drawn, also one whose text is not shown: what a parser of tool
// calls or a stream of log-probabilities goes by. The views last for the call.
struct DrawnToken {
  int64_t sample = 0;
  Token token = 0;
  std::string_view bytes;  // that it stands for; of a control token its own text, "<|eot|>"
  bool control = false;    // not part of the text, unless show_special
  bool stop = false;       // a stop token: not part of the answer
  const ChoiceLogprobs* logprobs = nullptr;  // if asked for
};

// Like a Listener's, for all answers of a request.
struct Events {
  Progress prompt;
  std::function<void(int64_t sample, std::string_view piece)> text;
  // Each token, before the text that it lets out. Text may be held back for later tokens, and comes
  // without one at the end.
  std::function<void(const DrawnToken& token)> token = {};
  // Of the prompt, if asked for, when it is read, before all tokens.
  std::function<void(std::span<const ChoiceLogprobs> logprobs)> prompt_logprobs = {};
  // The last thing that is heard: all answers, or what went wrong.
  std::function<void(std::vector<Answer> answers, std::exception_ptr error)> done = {};
  const std::atomic<bool>* cancel = nullptr;
};

// Gets the logits of tokens first, first + 1, ... of a prompt; the view lasts for the call.
using EachLogits = std::function<void(int64_t first, ConstMatrixView logits)>;

}  // namespace drover
