// Log-probabilities as the two endpoints show them. A probability of zero is shown as -9999, since
// JSON has no infinity.
#pragma once

#include <boost/json.hpp>
#include <span>

#include "engine/logprobs.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace drover {

// Of a chat: {"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}. `token` is
// text, with U+FFFD where its bytes are no whole characters; `bytes` are its own.
boost::json::object chat_logprobs(const Tokenizer& tokenizer,
                                  std::span<const ChoiceLogprobs> tokens);

// Of a completion: {text_offset, tokens, token_logprobs, top_logprobs}, token by token. A token
// that is no whole characters is named by its bytes, "bytes:\xe2\x82"; offsets count the characters
// of the choice's text before it. The most probable come with the one that was chosen, if it is not
// among them.
class CompletionLogprobs {
 public:
  // show_special: control tokens are part of the text.
  CompletionLogprobs(const Tokenizer& tokenizer, bool show_special)
      : tokenizer_(tokenizer), detokenizer_(tokenizer), show_special_(show_special) {}

  // The first token of a text, before which there is nothing to say.
  void add_first(Token token);
  void add(const ChoiceLogprobs& token);
  // What is held back of the prompt does not go on in the answer.
  void end_prompt();

  bool empty() const { return tokens_.empty(); }
  // What was added since the last time.
  boost::json::object take();

 private:
  void add(Token token, boost::json::value logprob, boost::json::value top);

  Tokenizer tokenizer_;
  Detokenizer detokenizer_;
  bool show_special_;
  int64_t offset_ = 0;
  boost::json::array offsets_, tokens_, logprobs_, tops_;
};

}  // namespace drover
