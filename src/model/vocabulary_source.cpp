#include "model/vocabulary_source.h"

#include <algorithm>
#include <boost/json.hpp>

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/tiktoken.h"
#include "model/model.h"

namespace drover {

namespace fs = std::filesystem;
namespace json = boost::json;

Vocabulary vocabulary_of(const GgufFile& file) {
  const auto id = [&](std::string_view key) -> std::optional<uint32_t> {
    const auto value = file.unsigned_value(key);
    if (!value) return std::nullopt;
    return static_cast<uint32_t>(std::min<uint64_t>(*value, ~uint32_t{0}));
  };
  const std::string_view none;
  GgufTokenizerFields fields;
  fields.source = file.path();
  if (!file.has("tokenizer.ggml.model")) {
    throw_error(ErrorKind::kUnsupported, "{}: has no tokenizer", file.path());
  }
  fields.model = file.required_string("tokenizer.ggml.model");
  fields.pre = file.string_value("tokenizer.ggml.pre").value_or(none);
  if (auto tokens = file.string_array("tokenizer.ggml.tokens")) fields.tokens = std::move(*tokens);
  if (auto merges = file.string_array("tokenizer.ggml.merges")) fields.merges = std::move(*merges);
  if (const auto types = file.signed_array("tokenizer.ggml.token_type")) {
    fields.token_types.assign(types->begin(), types->end());
  }
  fields.bos = id("tokenizer.ggml.bos_token_id");
  fields.eos = id("tokenizer.ggml.eos_token_id");
  fields.pad = id("tokenizer.ggml.padding_token_id");
  fields.eot = id("tokenizer.ggml.eot_token_id");
  fields.eom = id("tokenizer.ggml.eom_token_id");
  fields.add_bos = file.bool_value("tokenizer.ggml.add_bos_token");
  fields.chat_template = file.string_value("tokenizer.chat_template").value_or(none);
  return vocabulary_from_gguf(fields);
}

Vocabulary vocabulary_of(const HuggingfaceFolder& folder) {
  Vocabulary vocabulary;
  if (folder.tokenizer_json) {
    const std::string text = read_file(*folder.tokenizer_json, kMaxTokenizerJsonBytes);
    std::optional<std::string> config;
    if (folder.tokenizer_config) config = json::serialize(*folder.tokenizer_config);
    vocabulary = vocabulary_from_tokenizer_json(
        text, folder.tokenizer_json->string(),
        config ? std::optional<std::string_view>(*config) : std::nullopt);
  } else if (folder.tokenizer_model) {
    vocabulary = vocabulary_from_tiktoken(read_tiktoken(*folder.tokenizer_model),
                                          folder.tokenizer_model->string());
  } else {
    throw_error(ErrorKind::kUnsupported, "{}: has no tokenizer.json and no tokenizer.model",
                folder.path.string());
  }
  if (folder.chat_template) vocabulary.chat_template = *folder.chat_template;
  return vocabulary;
}

Tokenizer load_tokenizer(const std::string& name) {
  const fs::path path = locate_model(name);
  if (fs::is_directory(path)) {
    // A folder with a tokenizer and no weights is enough here.
    HuggingfaceFolder folder = HuggingfaceFolder::open_config_only(path);
    return Tokenizer(vocabulary_of(folder));
  }
  if (path.extension() == ".json") {
    const std::string text = read_file(path, kMaxTokenizerJsonBytes);
    return Tokenizer(vocabulary_from_tokenizer_json(text, path.string(), std::nullopt));
  }
  if (path.extension() == ".model") {
    return Tokenizer(vocabulary_from_tiktoken(read_tiktoken(path), path.string()));
  }
  return Tokenizer(vocabulary_of(GgufFile::open(path)));
}

}  // namespace drover
