// What the readers of request bodies share.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/json.h"
#include "model/model.h"

namespace drover {

// kUnsupported: this field would change the answer and is not done.
[[noreturn]] void refuse_field(std::string_view field);

// Whether a field asks for nothing: null, false, 0, "", [] or {}.
bool asks_nothing(const boost::json::value& value);

// Calls it, with kBadData as kUsage: here a damaged field is the caller's word, not a file's.
void reading_words_of_caller(const std::function<void()>& read);

// A field that is an array of objects, each with where it stands, "messages[3]"; empty where it is
// absent. kUsage for anything else.
std::vector<JsonFields> read_objects(const JsonFields& body, std::string_view key);

// A prompt as it came: a text, or tokens.
struct ApiInput {
  std::vector<Token> tokens;  // of a text begin-of-text comes first where the vocabulary adds it
  bool was_text = false;
};

// As many as the OpenAI API takes in one request.
inline constexpr size_t kMostInputs = 2048;

// A text, tokens, or an array of such. kUsage for anything else, none or more than kMostInputs, and
// for tokens outside the vocabulary, which are another tokenizer's.
std::vector<ApiInput> read_inputs(const JsonFields& body, std::string_view key, const Model& model);

}  // namespace drover
