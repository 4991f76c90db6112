#include "api/logprobs.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "text/utf8.h"

namespace drover {
namespace {

namespace json = boost::json;

double shown(double logprob) { return std::isfinite(logprob) ? logprob : -9999.0; }

json::object entry(const Tokenizer& tokenizer, const TokenLogprob& one) {
  const std::string_view bytes = tokenizer.token_bytes(one.token);
  json::array numbers;
  for (const char byte : bytes) numbers.push_back(static_cast<unsigned char>(byte));
  return {
      {"token", as_utf8(bytes)}, {"logprob", shown(one.logprob)}, {"bytes", std::move(numbers)}};
}

std::string name_of(const Tokenizer& tokenizer, Token token) {
  const std::string_view bytes = tokenizer.token_bytes(token);
  std::string text = as_utf8(bytes);
  if (text == bytes) return text;
  text = "bytes:";
  for (const char byte : bytes) {
    text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  }
  return text;
}

// Of well-formed text.
int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace

json::object chat_logprobs(const Tokenizer& tokenizer, std::span<const ChoiceLogprobs> tokens) {
  json::array content;
  for (const ChoiceLogprobs& token : tokens) {
    json::object one = entry(tokenizer, token.chosen);
    json::array top;
    for (const TokenLogprob& other : token.top) top.push_back(entry(tokenizer, other));
    one["top_logprobs"] = std::move(top);
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

void CompletionLogprobs::add_first(Token token) { add(token, nullptr, nullptr); }

void CompletionLogprobs::add(const ChoiceLogprobs& token) {
  json::object top;
  for (const TokenLogprob& one : token.top) {
    top.emplace(name_of(tokenizer_, one.token), shown(one.logprob));
  }
  top.emplace(name_of(tokenizer_, token.chosen.token), shown(token.chosen.logprob));
  add(token.chosen.token, shown(token.chosen.logprob), std::move(top));
}

void CompletionLogprobs::add(Token token, json::value logprob, json::value top) {
  offsets_.push_back(offset_);
  tokens_.push_back(json::value(name_of(tokenizer_, token)));
  logprobs_.push_back(std::move(logprob));
  tops_.push_back(std::move(top));
  offset_ += characters(detokenizer_.push(token));
  if (show_special_ && tokenizer_.is_control(token)) {
    offset_ += characters(tokenizer_.token_bytes(token));
  }
}

void CompletionLogprobs::end_prompt() { offset_ += characters(detokenizer_.flush()); }

json::object CompletionLogprobs::take() {
  return {{"text_offset", std::exchange(offsets_, {})},
          {"tokens", std::exchange(tokens_, {})},
          {"token_logprobs", std::exchange(logprobs_, {})},
          {"top_logprobs", std::exchange(tops_, {})}};
}

}  // namespace drover
