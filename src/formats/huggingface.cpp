#include "formats/huggingface.h"

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace fs = std::filesystem;

// The largest in the wild are some 300 KB (a tokenizer_config.json with 1,000 added tokens).
constexpr JsonLimits kConfigLimits = {.bytes = size_t{8} << 20};
constexpr size_t kTemplateBytes = size_t{4} << 20;

std::optional<fs::path> file_if_there(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::nullopt;
  return path;
}

std::optional<boost::json::object> read_if_there(const fs::path& path) {
  if (!file_if_there(path)) return std::nullopt;
  return read_json_object(path, kConfigLimits);
}

// The value of "chat_template": a text, or a list of {"name", "template"}.
std::optional<std::string> template_in(const boost::json::object& object, const fs::path& path) {
  const JsonFields fields(object, printable(path.string(), 300));
  const boost::json::value* value = fields.find("chat_template");
  if (value == nullptr) return std::nullopt;
  if (const boost::json::array* list = value->if_array()) {
    for (const boost::json::value& item : *list) {
      const boost::json::object* named = item.if_object();
      if (named == nullptr) {
        throw_error(ErrorKind::kBadData,
                    "{}: key chat_template: expected objects in the list, got others",
                    fields.where());
      }
      const JsonFields entry(*named, fields.where() + ": chat_template");
      if (entry.required_text("name") == "default")
        return std::string(entry.required_text("template"));
    }
    return std::nullopt;
  }
  return std::string(fields.required_text("chat_template"));
}

std::optional<std::string> read_chat_template(const HuggingfaceFolder& folder) {
  if (const auto path = file_if_there(folder.path / "chat_template.jinja")) {
    return read_file(*path, kTemplateBytes);
  }
  const fs::path json_path = folder.path / "chat_template.json";
  if (const auto object = read_if_there(json_path)) {
    if (auto text = template_in(*object, json_path)) return text;
  }
  if (!folder.tokenizer_config) return std::nullopt;
  return template_in(*folder.tokenizer_config, folder.path / "tokenizer_config.json");
}

}  // namespace

HuggingfaceFolder HuggingfaceFolder::open_config_only(const fs::path& folder) {
  const std::string name = printable(folder.string(), 300);
  std::error_code code;
  const fs::file_status status = fs::status(folder, code);
  if (status.type() == fs::file_type::not_found) throw_errno("open", folder.string(), ENOENT);
  if (code) throw_errno("open", folder.string(), code.value());
  if (!fs::is_directory(status)) {
    throw_error(ErrorKind::kUsage,
                "{}: expected a GGUF file or a folder with config.json and *.safetensors, "
                "got another file",
                name);
  }
  if (!file_if_there(folder / "config.json")) {
    throw_error(
        ErrorKind::kNotFound,
        "{}: expected a GGUF file or a folder with config.json and *.safetensors, got a folder "
        "without config.json",
        name);
  }
  HuggingfaceFolder out;
  out.path = folder;
  out.config = read_json_object(folder / "config.json", kConfigLimits);
  out.generation_config = read_if_there(folder / "generation_config.json");
  out.tokenizer_config = read_if_there(folder / "tokenizer_config.json");
  out.tokenizer_json = file_if_there(folder / "tokenizer.json");
  out.tokenizer_model = file_if_there(folder / "tokenizer.model");
  out.chat_template = read_chat_template(out);
  return out;
}

HuggingfaceFolder HuggingfaceFolder::open(const fs::path& folder) {
  HuggingfaceFolder out = open_config_only(folder);
  out.weights = SafetensorsSet::open(folder);
  return out;
}

}  // namespace drover
