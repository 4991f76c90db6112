#include "api/tokens.h"

#include "api/body.h"
#include "api/messages.h"
#include "base/error.h"
#include "text/utf8.h"

namespace drover {
namespace {

namespace json = boost::json;

std::vector<Token> tokens_of(const JsonFields& body, const Model& model, ChatFormat format) {
  if (body.has("messages")) {
    return read_messages(body, model, format, body.boolean("add_generation_prompt").value_or(true))
        .tokens;
  }
  const Tokenizer& tokenizer = model.tokenizer();
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const bool content = body.has("content");
  const std::string_view text = body.required_text(content ? "content" : "prompt");
  const bool begin =
      body.boolean("add_special_tokens").value_or(body.boolean("add_special").value_or(!content));
  std::vector<Token> out = body.boolean("parse_special").value_or(false)
                               ? tokenizer.encode_special(text)
                               : tokenizer.encode(text);
  if (begin && vocabulary.add_bos && vocabulary.bos) out.insert(out.begin(), *vocabulary.bos);
  return out;
}

}  // namespace

json::object tokenize_answer(const json::object& body, const Model& model, ChatFormat format,
                             int64_t context) {
  json::object out;
  reading_words_of_caller([&] {
    const JsonFields fields(body, "body");
    const std::vector<Token> tokens = tokens_of(fields, model, format);
    out = {{"count", tokens.size()},
           {"max_model_len", context},
           {"tokens", json::array(tokens.begin(), tokens.end())}};
    if (!fields.boolean("return_token_strs").value_or(false)) return;
    json::array texts;
    for (const Token token : tokens) {
      texts.push_back(json::value(as_utf8(model.tokenizer().token_bytes(token))));
    }
    out["token_strs"] = std::move(texts);
  });
  return out;
}

json::object tokenizer_info(const Model& model, int64_t context) {
  const Tokenizer& tokenizer = model.tokenizer();
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const auto text = [&](std::optional<Token> token) {
    return token ? json::value(as_utf8(tokenizer.token_bytes(*token))) : json::value();
  };
  const std::string& format = vocabulary.chat_template;
  return {{"bos_token", text(vocabulary.bos)},
          {"eos_token", text(vocabulary.eos)},
          {"pad_token", text(vocabulary.pad)},
          {"add_bos_token", vocabulary.add_bos},
          {"chat_template", format.empty() ? json::value() : json::value(as_utf8(format))},
          {"model_max_length", context}};
}

json::object detokenize_answer(const json::object& body, const Model& model) {
  json::object out;
  reading_words_of_caller([&] {
    const JsonFields fields(body, "body");
    const auto numbers = fields.integers("tokens");
    if (!numbers) throw_error(ErrorKind::kUsage, "tokens: expected an array of integers");
    std::vector<Token> tokens;
    for (const int64_t token : *numbers) {
      if (token < 0 || token >= model.config().vocab) {
        throw_error(ErrorKind::kUsage, "tokens: expected 0 to {}, got {}", model.config().vocab - 1,
                    token);
      }
      tokens.push_back(static_cast<Token>(token));
    }
    const std::string text = as_utf8(model.tokenizer().decode(tokens, /*show_special=*/true));
    out = {{"prompt", text}, {"content", text}};
  });
  return out;
}

}  // namespace drover
