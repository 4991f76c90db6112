// An answer of the API as it comes: events of the engine in, events of a stream out, in the words
// of the endpoint that was asked. chunks.h, responses.h and anthropic.h each have one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "api/answer.h"
#include "api/errors.h"

namespace drover {

// One per request; not thread-safe. All calls but begin() and fail() are an engine's events, in
// their order, each with the number of the prompt that it is about.
class AnswerStream {
 public:
  // Gets each event, whole: its name, empty where the dialect has none, and its data.
  using Emit = std::function<void(std::string_view name, std::string_view data)>;

  virtual ~AnswerStream() = default;

  // At once, before anything is computed.
  virtual void begin() = 0;
  virtual void prompt_logprobs(size_t, std::span<const ChoiceLogprobs>) {}
  virtual void token(size_t prompt, const DrawnToken& token) = 0;
  virtual void text(size_t prompt, int64_t sample, std::string_view piece) = 0;
  // The last of a prompt, and after all of them of the stream.
  virtual void done(size_t prompt, std::span<const Answer> answers) = 0;
  // What went wrong, in place of the rest.
  virtual void fail(const ApiError& error) = 0;
};

// Of a request that has a stream; it and the tokenizer's vocabulary must outlive it.
std::shared_ptr<AnswerStream> make_stream(const ApiRequest& request, const Tokenizer& tokenizer,
                                          ApiName name, AnswerStream::Emit emit);

}  // namespace drover
