// An answer of the OpenAI API as it comes: events of the engine in, chunks of JSON out, in the form
// that all clients read. Of a chat first the role of every choice, then pieces of content and of
// calls, then the reason for the end; at last what it took, if that was asked for.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/answer.h"
#include "text/tool_calls.h"

namespace drover {

// A chunk as an event of a stream (text/event-stream), and the event after the last.
std::string stream_event(const boost::json::object& chunk);
inline constexpr std::string_view kStreamEnd = "data: [DONE]\n\n";

// One per request; not thread-safe. All calls but begin() are an engine's events, in their order,
// each with the number of the prompt that it is about.
class StreamWriter {
 public:
  // Gets each chunk, whole; chat.completion.chunk or text_completion.
  using Emit = std::function<void(const boost::json::object& chunk)>;

  // `request` must outlive the writer.
  StreamWriter(const ApiRequest& request, const Tokenizer& tokenizer, ApiName name, Emit emit);

  // At once, before anything is computed.
  void begin();
  void prompt_logprobs(size_t prompt, std::span<const ChoiceLogprobs> logprobs);
  void token(size_t prompt, const DrawnToken& token);
  void text(size_t prompt, int64_t sample, std::string_view piece);
  void done(size_t prompt, std::span<const Answer> answers);

 private:
  // One choice. Log-probabilities wait for the next piece of text, which may be later than they.
  struct Choice {
    std::vector<ChoiceLogprobs> chat;
    CompletionLogprobs completion;
    std::optional<ToolCallParser> calls;  // where tools may be called
    bool called = false;                  // one of them, whole
  };

  bool is_chat() const { return request_.kind == ApiKind::kChat; }
  size_t index(size_t prompt, int64_t sample) const;
  void say(size_t choice, std::string_view piece);
  void hear(size_t choice, const std::vector<ToolEvent>& events);
  boost::json::value take_logprobs(Choice& choice);
  // delta: of a chat, a completion's text.
  void emit(size_t choice, boost::json::value delta, boost::json::value logprobs,
            boost::json::value finish);
  boost::json::object chunk(boost::json::array choices) const;

  const ApiRequest& request_;
  const Tokenizer tokenizer_;
  const ApiName name_;
  const Emit emit_;
  std::vector<Choice> choices_;
  size_t prompts_done_ = 0;
  ApiUsage usage_;
};

}  // namespace drover
