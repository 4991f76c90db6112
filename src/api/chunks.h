// The stream of OpenAI's two older endpoints: chunks of JSON in the form that all clients read. Of
// a chat first the role of every choice, then pieces of content and of calls, then the reason for
// the end; at last what it took, if that was asked for, and "[DONE]".
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <vector>

#include "api/stream.h"
#include "text/tool_calls.h"

namespace drover {

class ChunkStream : public AnswerStream {
 public:
  // `request` must outlive the stream.
  ChunkStream(const ApiRequest& request, const Tokenizer& tokenizer, ApiName name, Emit emit);

  void begin() override;
  void prompt_logprobs(size_t prompt, std::span<const ChoiceLogprobs> logprobs) override;
  void token(size_t prompt, const DrawnToken& token) override;
  void text(size_t prompt, int64_t sample, std::string_view piece) override;
  void done(size_t prompt, std::span<const Answer> answers) override;
  void fail(const ApiError& error) override;

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
