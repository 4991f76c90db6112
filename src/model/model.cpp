#include "model/model.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdlib>

#include "base/mapped_file.h"
#include "model/vocabulary_source.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// A value out of range is as good as absent: some writers put -1 for "off".
GenerationDefaults sensible(GenerationDefaults d) {
  const auto drop = [](auto& value, bool good) {
    if (!good) value.reset();
  };
  if (d.temperature) drop(d.temperature, *d.temperature >= 0 && *d.temperature <= 100);
  if (d.top_p) drop(d.top_p, *d.top_p > 0 && *d.top_p <= 1);
  if (d.min_p) drop(d.min_p, *d.min_p >= 0 && *d.min_p <= 1);
  if (d.repeat_penalty) drop(d.repeat_penalty, *d.repeat_penalty > 0 && *d.repeat_penalty <= 100);
  if (d.top_k) drop(d.top_k, *d.top_k >= 0);
  return d;
}

// The keys under which newer GGUF files carry the same advice.
GenerationDefaults generation_defaults(const GgufFile& file) {
  GenerationDefaults out;
  out.temperature = file.float_value("general.sampling.temp");
  out.top_p = file.float_value("general.sampling.top_p");
  out.min_p = file.float_value("general.sampling.min_p");
  out.repeat_penalty = file.float_value("general.sampling.penalty_repeat");
  out.top_k = file.signed_value("general.sampling.top_k");
  return out;
}

}  // namespace

// Numbers that are of the wrong type or out of all reason are as good as absent: they are advice.
GenerationDefaults generation_advice(const json::object& config) {
  const auto number = [&](std::string_view key) -> std::optional<double> {
    const json::value* value = config.if_contains(key);
    if (value == nullptr || !value->is_number()) return std::nullopt;
    return value->to_number<double>();
  };
  GenerationDefaults out;
  out.temperature = number("temperature");
  out.top_p = number("top_p");
  out.min_p = number("min_p");
  out.repeat_penalty = number("repetition_penalty");
  if (const auto k = number("top_k"); k && *k >= 0 && *k < 1e9)
    out.top_k = static_cast<int64_t>(*k);
  if (const json::value* sample = config.if_contains("do_sample")) {
    out.greedy = sample->is_bool() && !sample->get_bool();
  }
  return out;
}

std::vector<Token> generation_stops(const json::object& config) {
  std::vector<Token> out;
  const auto add = [&](const json::value& value) {
    if (value.is_int64() && value.get_int64() >= 0 && value.get_int64() < (1 << 30)) {
      out.push_back(static_cast<Token>(value.get_int64()));
    }
  };
  if (const json::value* eos = config.if_contains("eos_token_id")) {
    if (eos->is_array()) {
      for (const json::value& value : eos->get_array()) add(value);
    } else {
      add(*eos);
    }
  }
  return out;
}

LicenceNote licence_of(const GgufFile& file) {
  const auto text = [&](std::string_view key) {
    return std::string(file.string_value(key).value_or(std::string_view()));
  };
  return {text("general.license"), text("general.license.name"), text("general.license.link")};
}

// The licence of a folder stands in the front matter of its README.md, "license: NAME".
LicenceNote licence_of(const HuggingfaceFolder& folder) {
  LicenceNote note;
  std::string readme;
  try {
    readme = read_file(folder.path / "README.md", size_t{4} << 20);
  } catch (const Error&) {
    return note;  // a folder need not say
  }
  if (!readme.starts_with("---")) return note;
  size_t line = readme.find('\n');
  while (line != std::string::npos && line + 1 < readme.size()) {
    const size_t end = readme.find('\n', line + 1);
    const std::string text =
        readme.substr(line + 1, end == std::string::npos ? end : end - line - 1);
    if (text.starts_with("---")) break;
    const auto value = [&](std::string_view key) -> std::optional<std::string> {
      if (!text.starts_with(key)) return std::nullopt;
      const size_t first = text.find_first_not_of(" \t\"'", key.size());
      if (first == std::string::npos) return std::nullopt;
      return text.substr(first, text.find_last_not_of(" \t\r\"'") - first + 1);
    };
    if (auto id = value("license:")) note.id = *id;
    if (auto name = value("license_name:")) note.name = *name;
    if (auto link = value("license_link:")) note.link = *link;
    line = end;
  }
  return note;
}

fs::path local_model_folder() {
  const auto variable = [](const char* name) -> std::optional<fs::path> {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return fs::path(value);
  };
  if (const auto models = variable("DROVER_MODELS")) return *models;
  if (const auto data = variable("XDG_DATA_HOME")) return *data / "drover" / "models";
  return variable("HOME").value_or(".") / ".local" / "share" / "drover" / "models";
}

fs::path locate_model(const std::string& name) {
  if (name.empty())
    throw_error(ErrorKind::kUsage, "model: expected a file, folder or name, got none");
  std::error_code code, ignored;
  if (fs::exists(name, code)) return name;
  if (code == std::errc::permission_denied) throw_errno("open", name, EACCES);
  const fs::path folder = local_model_folder();
  // A name with a slash is a path, and was looked for.
  if (name.find('/') == std::string::npos) {
    for (const fs::path& candidate : {folder / name, folder / (name + ".gguf")}) {
      if (fs::exists(candidate, ignored)) return candidate;
    }
  }
  throw Error(ErrorKind::kNotFound,
              fmt::format("{}: expected a GGUF file, a Hugging Face folder, or a name in {}; found "
                          "nothing",
                          printable(name, 300), folder.string()),
              "check the spelling, or set DROVER_MODELS to your model folder");
}

std::unique_ptr<Model> Model::load(const std::string& name, const Progress& progress,
                                   const std::string& mmproj,
                                   std::span<const std::string> adapters) {
  std::unique_ptr<Model> model(new Model());
  model->path_ = locate_model(name);
  std::optional<Vocabulary> vocabulary;
  try {
    if (fs::is_directory(model->path_)) {
      model->huggingface_ = HuggingfaceFolder::open(model->path_);
      vocabulary = vocabulary_of(*model->huggingface_);
    } else {
      model->gguf_ = GgufFile::open(model->path_);
      vocabulary = vocabulary_of(*model->gguf_);
    }
    model->tokenizer_.emplace(std::move(*vocabulary));
  } catch (const Error& error) {
    const bool opened = model->gguf_ || model->huggingface_;
    if (!opened || error.kind() != ErrorKind::kUnsupported) throw;
    model->no_tokenizer_ = error;
  }

  if (model->gguf_) {
    const GgufFile& file = *model->gguf_;
    model->config_ = config_from_gguf(file);
    model->weights_ = weights_from_gguf(file, model->config_);
    if (mmproj.empty()) model->vision_ = vision_from_gguf(file, model->config_.hidden);
    model->licence_ = licence_of(file);
    model->generation_ = sensible(generation_defaults(file));
    for (const int64_t token : file.signed_array(kStopTokensKey).value_or(std::vector<int64_t>())) {
      if (token >= 0 && token < model->config_.vocab) {
        model->generation_stops_.push_back(static_cast<Token>(token));
      }
    }
  } else {
    const HuggingfaceFolder& folder = *model->huggingface_;
    model->config_ = config_from_huggingface(folder.config, (folder.path / "config.json").string());
    model->weights_ = weights_from_huggingface(folder, model->config_, progress);
    if (mmproj.empty()) model->vision_ = vision_from_huggingface(folder, model->config_.hidden);
    model->licence_ = licence_of(folder);
    const json::object& advice =
        folder.generation_config ? *folder.generation_config : folder.config;
    model->generation_ = sensible(generation_advice(advice));
    model->generation_stops_ = generation_stops(advice);
  }
  if (!adapters.empty()) {
    Weights& weights = model->weights_;
    weights.adapter = read_adapter(adapters, model->config_);
    weights.adapter.bind(weights);
    weights.bytes += weights.adapter.bytes();
  }
  if (!mmproj.empty()) {
    model->mmproj_ = GgufFile::open(locate_model(mmproj));
    model->vision_ = vision_from_gguf(*model->mmproj_, model->config_.hidden);
    if (!model->vision_) {
      throw_error(ErrorKind::kBadData, "{}: expected a vision encoder (clip.vision.*), got none",
                  model->mmproj_->path());
    }
  }
  if (model->vision_) model->find_patch_token();
  if (model->tokenizer_) {
    model->chat_format_ = detect_chat_format(model->tokenizer_->vocabulary());
    if (model->tokenizer_->size() > model->config_.vocab) {
      throw_error(ErrorKind::kBadData, "{}: expected at most {} tokens, one per embedding, got {}",
                  model->path_.string(), model->config_.vocab, model->tokenizer_->size());
    }
  }
  return model;
}

const Tokenizer& Model::tokenizer() const {
  if (!tokenizer_) throw *no_tokenizer_;
  return *tokenizer_;
}

// The token whose place pictures take: the tokenizer's and the configuration's are the same one.
void Model::find_patch_token() {
  std::optional<Token>& token = vision_->config.patch_token;
  const std::optional<Token> named = tokenizer_ ? tokenizer_->special("<|patch|>") : std::nullopt;
  if (!token) token = named;
  if (token && (*token >= config_.vocab || (named && *named != *token))) {
    throw_error(ErrorKind::kBadData, "{}: patch token of the vision encoder: expected {}, got {}",
                path_.string(),
                named ? fmt::format("{}, as <|patch|> is", *named)
                      : fmt::format("0 to {}", config_.vocab - 1),
                *token);
  }
}

const Vision& Model::vision() const {
  if (!vision_) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: this model is text only and cannot see pictures", path_.string()),
                "if its vision encoder is in a file of its own, name that with --mmproj");
  }
  return *vision_;
}

std::vector<Token> Model::stop_tokens(ChatFormat format) const {
  std::vector<Token> out = chat_stop_tokens(format, tokenizer());
  out.insert(out.end(), generation_stops_.begin(), generation_stops_.end());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace drover
