#include "api/body.h"

#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

ApiInput of_text(std::string_view text, const Tokenizer& tokenizer) {
  ApiInput out{{}, /*was_text=*/true};
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  if (vocabulary.add_bos && vocabulary.bos) out.tokens.push_back(*vocabulary.bos);
  tokenizer.encode(text, out.tokens);
  return out;
}

ApiInput of_tokens(const json::array& numbers, std::string_view key, const Model& model) {
  ApiInput out;
  for (const json::value& number : numbers) {
    const int64_t* token = number.if_int64();
    if (token == nullptr) {
      throw_error(ErrorKind::kUsage, "{}: expected texts alone or tokens alone", key);
    }
    if (*token < 0 || *token >= model.config().vocab) {
      throw Error(ErrorKind::kUsage,
                  fmt::format("{}: expected tokens of 0 to {}, got {}", key,
                              model.config().vocab - 1, *token),
                  "these are another tokenizer's; send the text (LangChain: "
                  "check_embedding_ctx_length=False)");
    }
    out.tokens.push_back(static_cast<Token>(*token));
  }
  return out;
}

}  // namespace

void refuse_field(std::string_view field) {
  throw_error(ErrorKind::kUnsupported, "{}: this is not done here", field);
}

bool asks_nothing(const json::value& value) {
  return value.is_null() || (value.is_bool() && !value.get_bool()) ||
         (value.is_int64() && value.get_int64() == 0) ||
         (value.is_string() && value.get_string().empty()) ||
         (value.is_array() && value.get_array().empty()) ||
         (value.is_object() && value.get_object().empty());
}

void reading_words_of_caller(const std::function<void()>& read) {
  try {
    read();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBadData) throw;
    throw Error(ErrorKind::kUsage, error.message(), error.hint());
  }
}

std::vector<JsonFields> read_objects(const JsonFields& body, std::string_view key) {
  std::vector<JsonFields> out;
  const json::value* value = body.find(key);
  if (value == nullptr) return out;
  // The body itself is the whole request: its fields are named alone.
  const std::string where =
      body.where() == "body" ? std::string(key) : fmt::format("{}.{}", body.where(), key);
  if (!value->is_array()) throw_error(ErrorKind::kUsage, "{}: expected an array", where);
  for (const json::value& one : value->get_array()) {
    const std::string at = fmt::format("{}[{}]", where, out.size());
    if (!one.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", at);
    out.emplace_back(one.get_object(), at);
  }
  return out;
}

std::vector<ApiInput> read_inputs(const JsonFields& body, std::string_view key,
                                  const Model& model) {
  const Tokenizer& tokenizer = model.tokenizer();
  const json::value* value = body.find(key);
  if (value == nullptr || !value->is_array()) return {of_text(body.required_text(key), tokenizer)};
  const json::array& all = value->get_array();
  if (all.empty()) throw_error(ErrorKind::kUsage, "{}: expected at least one, got none", key);
  if (all[0].is_number()) return {of_tokens(all, key, model)};
  if (all.size() > kMostInputs) {
    throw_error(ErrorKind::kUsage, "{}: expected at most {}, got {}", key, kMostInputs, all.size());
  }
  std::vector<ApiInput> out;
  for (const json::value& one : all) {
    if (const json::string* text = one.if_string()) {
      out.push_back(of_text({text->data(), text->size()}, tokenizer));
    } else if (const json::array* numbers = one.if_array()) {
      out.push_back(of_tokens(*numbers, key, model));
    } else {
      throw_error(ErrorKind::kUsage, "{}: expected texts alone or tokens alone", key);
    }
  }
  return out;
}

}  // namespace drover
