// Opens a model folder as Hugging Face publishes them: config.json beside *.safetensors and the
// tokenizer's files. It says what is there; what it means is for the floors above.
#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <optional>
#include <string>

#include "formats/safetensors.h"

namespace drover {

struct HuggingfaceFolder {
  std::filesystem::path path;
  boost::json::object config;
  std::optional<boost::json::object> generation_config;
  std::optional<boost::json::object> tokenizer_config;
  SafetensorsSet weights;
  std::optional<std::filesystem::path> tokenizer_json;   // if the file is there
  std::optional<std::filesystem::path> tokenizer_model;  // tiktoken's form of the vocabulary
  // From chat_template.jinja, chat_template.json or tokenizer_config.json, the first that is there;
  // of several named templates the one named "default".
  std::optional<std::string> chat_template;

  // Throws kNotFound if the folder, its config.json or its weights are missing, and what the
  // readers of the files throw.
  static HuggingfaceFolder open(const std::filesystem::path& folder);
  // The same without the weights, for those who only want to know what the model is.
  static HuggingfaceFolder open_config_only(const std::filesystem::path& folder);
};

}  // namespace drover
