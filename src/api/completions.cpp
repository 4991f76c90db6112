#include "api/completions.h"

#include <algorithm>
#include <array>

#include "api/data_url.h"
#include "engine/advised_options.h"
#include "engine/picture_encoder.h"
#include "formats/json.h"
#include "image/decode.h"
#include "text/utf8.h"

namespace drover {
namespace {

namespace json = boost::json;

// Fields that would change the answer and are not done. All others that are not read change
// nothing, or nothing that anybody can see here.
constexpr std::array<std::string_view, 13> kRefused = {
    "audio",      "best_of",    "function_call", "functions", "logit_bias",   "logprobs",
    "modalities", "prediction", "suffix",        "tools",     "top_logprobs", "web_search_options",
    "stream"};

[[noreturn]] void refuse(std::string_view field, std::string_view why) {
  throw_error(ErrorKind::kUsage, "{}: {}", field, why);
}

// Refuses what would change the answer and is not done.
void expect_fields(const json::object& body) {
  for (const auto& [key, value] : body) {
    const std::string_view name(key.data(), key.size());
    if (value.is_null()) continue;
    const bool empty = (value.is_array() && value.get_array().empty()) ||
                       (value.is_object() && value.get_object().empty()) ||
                       (value.is_bool() && !value.get_bool()) ||
                       (value.is_int64() && value.get_int64() == 0);
    if (empty) continue;
    if (std::find(kRefused.begin(), kRefused.end(), name) != kRefused.end()) {
      refuse(name, "this is not done here");
    }
    if (name == "tool_choice" && value != "none" && value != "auto") {
      refuse(name, "this is not done here");
    }
    if (name == "response_format" && (!value.is_object() || !value.get_object().contains("type") ||
                                      value.get_object().at("type") != "text")) {
      refuse(name, "expected {\"type\": \"text\"}");
    }
  }
}

template <typename T>
void set(T& to, const std::optional<double>& value) {
  if (value) to = static_cast<T>(*value);
}

std::vector<std::string> read_stops(const JsonFields& body) {
  const json::value* stop = body.find("stop");
  if (stop == nullptr) return {};
  if (stop->is_string()) return {std::string(stop->get_string())};
  const auto texts = body.texts("stop");
  std::vector<std::string> out(texts->begin(), texts->end());
  if (out.size() > 16)
    throw_error(ErrorKind::kUsage, "stop: expected at most 16, got {}", out.size());
  return out;
}

void read_options(const JsonFields& body, Request& request) {
  GenerateOptions& options = request.options;
  SamplingOptions& s = options.sampling;
  set(s.temperature, body.number("temperature"));
  set(s.top_p, body.number("top_p"));
  set(s.min_p, body.number("min_p"));
  set(s.presence_penalty, body.number("presence_penalty"));
  set(s.frequency_penalty, body.number("frequency_penalty"));
  set(s.repeat_penalty, body.number("repeat_penalty"));
  set(s.repeat_penalty, body.number("repetition_penalty"));
  if (const auto top_k = body.integer("top_k")) s.top_k = std::max<int64_t>(*top_k, 0);
  if (const auto seed = body.integer("seed")) s.seed = static_cast<uint64_t>(*seed);
  request.samples = body.integer("n").value_or(1);
  if (request.samples < 1 || request.samples > 128) {
    throw_error(ErrorKind::kUsage, "n: expected 1 to 128, got {}", request.samples);
  }
  const auto max_new = body.integer("max_completion_tokens"), max_old = body.integer("max_tokens");
  if (const auto most = max_new ? max_new : max_old) {
    if (*most < 0) throw_error(ErrorKind::kUsage, "max_tokens: expected 0 or more, got {}", *most);
    options.max_tokens = *most;
  }
  const int64_t priority = body.integer("priority").value_or(0);
  if (priority < -1000 || priority > 1000) {
    throw_error(ErrorKind::kUsage, "priority: expected -1000 to 1000, got {}", priority);
  }
  request.priority = static_cast<int>(priority);
  options.stop = read_stops(body);
  validate(s);
}

// A message's picture, cut; what stands in its place in the text.
PictureTokens read_picture(const JsonFields& part, const Model& model,
                           std::vector<TiledImage>& pictures) {
  const json::value* url = part.find("image_url");
  const auto inner = url != nullptr && url->is_object() ? part.fields("image_url") : std::nullopt;
  const std::string_view text =
      inner ? inner->required_text("url") : part.required_text("image_url");
  const VisionConfig& config = model.vision().config;
  const auto bytes = bytes_of_data_url(text, part.where());
  pictures.push_back(cut_tiles(config.tiles, decode_image(bytes, part.where())));
  return picture_tokens(config, pictures.back().layout);
}

Message read_message(const JsonFields& message, const Model& model,
                     std::vector<TiledImage>& pictures) {
  std::string role(message.required_text("role"));
  if (role == "developer") role = "system";
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    throw_error(ErrorKind::kUsage,
                "{}: role: expected system, developer, user, assistant or tool, "
                "got {}",
                message.where(), printable(role));
  }
  if (message.has("tool_calls")) refuse(message.where(), "tool_calls: this is not done here");
  const json::value* content = message.find("content");
  if (content == nullptr || content->is_string()) {
    return {role, std::string(message.required_text("content"))};
  }
  if (!content->is_array()) {
    throw_error(ErrorKind::kUsage, "{}: content: expected a text or an array of parts",
                message.where());
  }
  std::vector<Part> parts;
  for (const json::value& value : content->get_array()) {
    const std::string where = fmt::format("{}: part {}", message.where(), parts.size());
    if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
    const JsonFields part(value.get_object(), where);
    const std::string_view type = part.required_text("type");
    if (type == "text") {
      parts.push_back({std::string(part.required_text("text"))});
    } else if (type == "image_url") {
      parts.push_back({"", read_picture(part, model, pictures)});
    } else {
      throw_error(ErrorKind::kUsage, "{}: type: expected text or image_url, got {}", where,
                  printable(type));
    }
  }
  return {role, std::move(parts)};
}

void read_chat(const JsonFields& body, const Model& model, ChatFormat format, ApiRequest& out) {
  const json::value* messages = body.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) {
    throw_error(ErrorKind::kUsage, "messages: expected an array of at least one");
  }
  std::vector<Message> read;
  for (const json::value& value : messages->get_array()) {
    const std::string where = fmt::format("message {}", read.size());
    if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
    read.push_back(read_message({value.get_object(), where}, model, out.pictures));
  }
  out.request.prompt.tokens =
      render_chat(format, model.tokenizer(), read, /*add_generation_prompt=*/true);
}

void read_prompt(const JsonFields& body, const Model& model, ApiRequest& out) {
  const Tokenizer& tokenizer = model.tokenizer();
  std::vector<Token>& tokens = out.request.prompt.tokens;
  const json::value* prompt = body.find("prompt");
  if (prompt != nullptr && prompt->is_array()) {
    const auto numbers = body.integers("prompt");
    for (const int64_t token : *numbers) {
      if (token < 0 || token >= model.config().vocab) {
        throw_error(ErrorKind::kUsage, "prompt: expected tokens of 0 to {}, got {}",
                    model.config().vocab - 1, token);
      }
      tokens.push_back(static_cast<Token>(token));
    }
  } else {
    const Vocabulary& vocabulary = tokenizer.vocabulary();
    if (vocabulary.add_bos && vocabulary.bos) tokens.push_back(*vocabulary.bos);
    tokenizer.encode(body.required_text("prompt"), tokens);
  }
  out.echo = body.boolean("echo").value_or(false);
  if (out.echo) {
    for (const Token token : tokens) {
      if (!tokenizer.is_control(token)) out.prompt_text += tokenizer.token_bytes(token);
    }
  }
}

std::string_view api_finish(FinishReason reason) {
  return reason == FinishReason::kStop ? "stop" : "length";
}

}  // namespace

ApiKind api_kind(std::string_view url) {
  if (url.starts_with("/v1/")) url.remove_prefix(3);
  if (url == "/chat/completions") return ApiKind::kChat;
  if (url == "/completions") return ApiKind::kCompletion;
  throw_error(ErrorKind::kUsage, "url: expected /v1/chat/completions or /v1/completions, got {}",
              printable(url));
}

ApiRequest read_api_request(ApiKind kind, const json::object& body, const Model& model,
                            ChatFormat format) {
  try {
    expect_fields(body);
    ApiRequest out;
    out.kind = kind;
    const JsonFields fields(body, "body");
    out.model = fields.text("model").value_or("");
    out.request.options =
        advised_options(model, kind == ApiKind::kChat ? format : ChatFormat::kNone);
    read_options(fields, out.request);
    if (kind == ApiKind::kChat) {
      read_chat(fields, model, format, out);
    } else {
      read_prompt(fields, model, out);
    }
    return out;
  } catch (const Error& error) {
    // Here a damaged field is the caller's word, not a file's.
    if (error.kind() != ErrorKind::kBadData) throw;
    throw Error(ErrorKind::kUsage, error.message(), error.hint());
  }
}

json::object api_answer(const ApiRequest& request, std::span<const Answer> answers,
                        std::string_view id, std::string_view model, int64_t created) {
  const bool chat = request.kind == ApiKind::kChat;
  json::array choices;
  int64_t written = 0;
  for (const Answer& answer : answers) {
    json::object choice{{"index", choices.size()}};
    const std::string text = as_utf8(request.prompt_text + answer.text);
    if (chat) {
      choice["message"] =
          json::object{{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
    } else {
      choice["text"] = text;
    }
    choice["logprobs"] = nullptr;
    choice["finish_reason"] = api_finish(answer.finish);
    choices.push_back(std::move(choice));
    written += static_cast<int64_t>(answer.tokens.size());
  }
  const int64_t read = answers.empty() ? 0 : answers[0].prompt_tokens;
  json::object usage{
      {"prompt_tokens", read}, {"completion_tokens", written}, {"total_tokens", read + written}};
  usage["prompt_tokens_details"] =
      json::object{{"cached_tokens", answers.empty() ? 0 : answers[0].cached_tokens}};
  return {{"id", id},
          {"object", chat ? "chat.completion" : "text_completion"},
          {"created", created},
          {"model", model},
          {"choices", std::move(choices)},
          {"usage", std::move(usage)}};
}

int api_status(const Error& error) {
  switch (error.kind()) {
    case ErrorKind::kUsage:
    case ErrorKind::kBadData:
    case ErrorKind::kUnsupported:
    case ErrorKind::kLimit:
      return 400;
    case ErrorKind::kNotFound:
      return 404;
    case ErrorKind::kPermission:
      return 403;
    default:
      return 500;
  }
}

json::object api_error(const Error& error) {
  const std::string message = error.hint().empty()
                                  ? error.message()
                                  : fmt::format("{} ({})", error.message(), error.hint());
  // The field that is at fault stands before the first colon, where it is one word.
  const std::string_view field =
      std::string_view(error.message()).substr(0, error.message().find(':'));
  const bool is_field =
      error.kind() == ErrorKind::kUsage && field.find(' ') == std::string_view::npos;
  const bool overflow = error.message().starts_with("prompt: expected at most the context");
  return {{"error", json::object{{"message", as_utf8(message)},
                                 {"type", api_status(error) == 500 ? "server_error"
                                                                   : "invalid_request_error"},
                                 {"param", is_field ? json::value(field) : json::value(nullptr)},
                                 {"code", overflow ? json::value("context_length_exceeded")
                                                   : json::value(error_kind_name(error.kind()))}}}};
}

}  // namespace drover
