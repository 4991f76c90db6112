// The answers of the API as JSON: chat.completion, text_completion, response, Anthropic's message,
// and lists of embeddings.
// Pure functions, thread-safe.
#pragma once

#include <boost/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/logprobs.h"
#include "api/request.h"

namespace drover {

// What every answer and every piece of one says of itself.
struct ApiName {
  std::string id;
  std::string model;    // as it is served
  int64_t created = 0;  // seconds since 1970
};

// The whole body. answers: of each of the request's prompts, in order; choice number
// prompt * n + sample is the sample-th answer to a prompt.
//
// Log-probabilities of a chat are those of the tokens of its content. Of a completion they go on to
// the stop token that ended it, if one did, as from the original; clients that want the prompt's
// alone ask for one token and drop the last. Tokens of a stop string are listed in both, though
// their text is not shown.
boost::json::object api_answer(const ApiRequest& request,
                               std::span<const std::vector<Answer>> answers,
                               const Tokenizer& tokenizer, const ApiName& name);

// What api_answer() and the stream (stream.h) share.

// "stop", "length", or, where the model stopped after calls of tools, "tool_calls".
std::string_view api_finish(FinishReason reason, bool called = false);
// What ids of an answer's parts are made of: its own without "resp_" or "chatcmpl-".
std::string_view stem_of(const ApiName& name);
// Of a call in an answer: another one for each call of each choice of each answer.
std::string tool_call_id(const ApiName& name, size_t choice, int64_t call);
// The prompt's text in front of a completion that echoes it, whole characters.
std::string echo_of(const Request& request, const Tokenizer& tokenizer);
// Adds the prompt of a completion that echoes it.
void add_prompt(const Request& request, std::span<const ChoiceLogprobs> logprobs,
                CompletionLogprobs& out);

// Tokens read and written.
struct ApiUsage {
  int64_t prompt = 0;
  int64_t cached = 0;  // of the prompt
  int64_t completion = 0;

  // The answers to one prompt, which is read once.
  void add(std::span<const Answer> answers);
  boost::json::object json() const;
};

}  // namespace drover
