#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "api/body.h"
#include "api/messages.h"
#include "api/options.h"
#include "api/responses.h"
#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

// What would need a memory, or is nobody's to do here.
constexpr const char* kRefused[] = {"previous_response_id", "conversation",
                                    "background",           "prompt",
                                    "moderation",           "context_management"};

void expect_fields(const JsonFields& body) {
  for (const char* field : kRefused) {
    const json::value* value = body.find(field);
    if (value != nullptr && !asks_nothing(*value)) refuse_field(field);
  }
  if (body.text("truncation").value_or("disabled") != "disabled") {
    throw_error(ErrorKind::kUnsupported, "truncation: expected disabled");
  }
  const auto text = body.fields("text");
  const auto format = text ? text->fields("format") : std::nullopt;
  if (format && format->required_text("type") != "text") {
    throw_error(ErrorKind::kUnsupported, "text.format: expected {{\"type\": \"text\"}}");
  }
}

// A function stands here in the tool itself, in a chat within it.
json::array read_functions(const JsonFields& body) {
  json::array out;
  for (const JsonFields& tool : read_objects(body, "tools")) {
    const std::string_view type = tool.required_text("type");
    if (type != "function") {
      throw_error(ErrorKind::kUnsupported, "{}: type: expected function, got {}", tool.where(),
                  printable(type));
    }
    json::object function{{"name", tool.required_text("name")}};
    for (const char* field : {"description", "parameters"}) {
      if (const json::value* value = tool.find(field)) function[field] = *value;
    }
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

Part read_part(const JsonFields& part, Conversation& to) {
  const std::string_view type = part.required_text("type");
  if (type == "input_text" || type == "output_text") {
    return {std::string(part.required_text("text"))};
  }
  if (type == "refusal") return {std::string(part.required_text("refusal"))};
  if (type == "input_image")
    return {"", to.pictures.read(part.required_text("image_url"), part.where())};
  throw_error(ErrorKind::kUnsupported,
              "{}: type: expected input_text, output_text, refusal or input_image, got {}",
              part.where(), printable(type));
}

// A text, or parts.
std::vector<Part> read_content(const JsonFields& item, std::string_view key, Conversation& to) {
  const json::value* content = item.find(key);
  if (content == nullptr || !content->is_array()) return {{std::string(item.required_text(key))}};
  std::vector<Part> out;
  for (const JsonFields& part : read_objects(item, key)) out.push_back(read_part(part, to));
  return out;
}

std::string read_role(const JsonFields& item) {
  const std::string_view role = item.required_text("role");
  if (role == "developer") return "system";
  if (role != "system" && role != "user" && role != "assistant") {
    throw_error(ErrorKind::kUsage,
                "{}: role: expected system, developer, user or assistant, got {}", item.where(),
                printable(role));
  }
  return std::string(role);
}

// What a model said and called in one turn are several items.
void add_item(const JsonFields& item, Conversation& to) {
  const std::string_view type = item.text("type").value_or("message");
  if (type == "message") {
    std::string role = read_role(item);
    to.messages.emplace_back(std::move(role), read_content(item, "content", to));
  } else if (type == "function_call") {
    if (to.messages.empty() || to.messages.back().role != "assistant") {
      to.messages.emplace_back("assistant", std::string());
    }
    to.messages.back().tool_calls.push_back({std::string(item.required_text("name")),
                                             read_tool_arguments(item.required_text("arguments"))});
  } else if (type == "function_call_output") {
    item.required_text("call_id");
    to.messages.emplace_back("tool", read_content(item, "output", to));
  } else if (type != "reasoning") {  // what another model thought is not shown to this one
    throw_error(ErrorKind::kUnsupported,
                "{}: type: expected message, function_call, function_call_output or reasoning, got "
                "{}",
                item.where(), printable(type));
  }
}

ChatPrompt read_input(const JsonFields& body, const Model& model, ChatFormat format,
                      const PictureSource& source) {
  Conversation conversation{{}, {model, source}};
  if (const auto instructions = body.text("instructions")) {
    conversation.messages.emplace_back("system", std::string(*instructions));
  }
  const size_t before = conversation.messages.size();
  const json::value* input = body.find("input");
  if (input != nullptr && input->is_string()) {
    conversation.messages.emplace_back("user", std::string(input->get_string()));
  } else {
    for (const JsonFields& item : read_objects(body, "input")) add_item(item, conversation);
  }
  if (conversation.messages.size() == before) {
    throw_error(ErrorKind::kUsage, "input: expected a text or an array of at least one item");
  }
  const json::value* choice = body.find("tool_choice");
  return conversation.prompt(
      model, format,
      read_tools(read_functions(body), choice == nullptr ? json::value(nullptr) : *choice));
}

std::optional<int64_t> read_logprobs(const JsonFields& body) {
  const int64_t top =
      within("top_logprobs", body.integer("top_logprobs").value_or(0), 0, kMostTopLogprobs);
  const auto include = body.texts("include");
  if (include && std::count(include->begin(), include->end(), "message.output_text.logprobs") > 0) {
    return top;
  }
  if (top > 0) {
    throw_error(ErrorKind::kUsage,
                "top_logprobs: expected include to have message.output_text.logprobs as well");
  }
  return std::nullopt;
}

json::object read_metadata(const JsonFields& body) {
  const auto metadata = body.fields("metadata");
  if (!metadata) return {};
  for (const auto& [key, value] : metadata->object()) metadata->required_text(key);
  return metadata->object();
}

// 0.6 and not 0.60000002384.
double shortest(float number) { return std::stod(fmt::to_string(number)); }

// What the answer says of the request.
json::object repeated(const JsonFields& body, const SamplingOptions& sampling) {
  json::object out{{"metadata", read_metadata(body)},
                   {"temperature", shortest(sampling.temperature)},
                   {"top_p", shortest(sampling.top_p)},
                   {"parallel_tool_calls", body.boolean("parallel_tool_calls").value_or(true)},
                   {"tools", json::array()},
                   {"tool_choice", "auto"},
                   {"top_logprobs", 0}};
  for (const char* field : {"instructions", "max_output_tokens", "user"}) out[field] = nullptr;
  for (const char* field : {"instructions", "max_output_tokens", "user", "tools", "tool_choice",
                            "top_logprobs", "safety_identifier", "prompt_cache_key"}) {
    if (const json::value* value = body.find(field)) out[field] = *value;
  }
  return out;
}

}  // namespace

void read_response_request(const JsonFields& body, const Model& model, ChatFormat format,
                           const PictureSource& source, ApiRequest& out) {
  expect_fields(body);
  Request options = read_options(body, model, format, out);
  read_most_tokens(body, "max_output_tokens", options);
  options.options.stop = read_stops(body, "stop");
  options.options.logprobs = read_logprobs(body);
  out.repeated = repeated(body, options.options.sampling);
  if (!out.repeated.at("parallel_tool_calls").as_bool()) out.most_calls = 1;
  ask_chat(read_input(body, model, format, source), model, std::move(options), out);
}

}  // namespace drover
