#include "api/messages.h"

#include <utility>

#include "api/body.h"
#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

Part read_part(const JsonFields& part, Conversation& to) {
  const std::string_view type = part.required_text("type");
  if (type == "text") return {std::string(part.required_text("text"))};
  if (type == "image_url") {
    const json::value* url = part.find("image_url");
    const bool inner = url != nullptr && url->is_object();
    const std::string_view text = inner ? part.required_fields("image_url").required_text("url")
                                        : part.required_text("image_url");
    return {"", to.pictures.read(text, part.where())};
  }
  throw_error(ErrorKind::kUsage, "{}: type: expected text or image_url, got {}", part.where(),
              printable(type));
}

// What an assistant called, {"function": {"name": ..., "arguments": JSON in a string}} each.
std::vector<ToolCall> read_tool_calls(const JsonFields& message) {
  std::vector<ToolCall> out;
  const json::value* calls = message.find("tool_calls");
  if (calls == nullptr || asks_nothing(*calls)) return out;
  for (const JsonFields& one : read_objects(message, "tool_calls")) {
    const JsonFields function = one.required_fields("function");
    ToolCall call{std::string(function.required_text("name")), json::object()};
    if (const json::value* arguments = function.find("arguments"); arguments != nullptr) {
      call.arguments =
          arguments->is_string() ? read_tool_arguments(arguments->get_string()) : *arguments;
    }
    out.push_back(std::move(call));
  }
  return out;
}

Message read_message(const JsonFields& message, Conversation& to) {
  std::string role(message.required_text("role"));
  if (role == "developer") role = "system";
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    throw_error(ErrorKind::kUsage,
                "{}: role: expected system, developer, user, assistant or tool, got {}",
                message.where(), printable(role));
  }
  std::vector<ToolCall> calls = read_tool_calls(message);
  if (!calls.empty() && role != "assistant") {
    throw_error(ErrorKind::kUsage, "{}: tool_calls: expected them of an assistant, got {}",
                message.where(), role);
  }
  const json::value* content = message.find("content");
  if (content == nullptr || content->is_string()) {
    // A call may stand alone.
    Message out(role, content == nullptr && !calls.empty()
                          ? std::string()
                          : std::string(message.required_text("content")));
    out.tool_calls = std::move(calls);
    return out;
  }
  if (!content->is_array()) {
    throw_error(ErrorKind::kUsage, "{}: content: expected a text or an array of parts",
                message.where());
  }
  std::vector<Part> parts;
  for (const JsonFields& part : read_objects(message, "content")) {
    parts.push_back(read_part(part, to));
  }
  Message out(role, std::move(parts));
  out.tool_calls = std::move(calls);
  return out;
}

}  // namespace

ChatPrompt Conversation::prompt(const Model& model, ChatFormat format, const Tools& tools,
                                bool add_generation_prompt) {
  return {render_chat(format, model.tokenizer(), messages, add_generation_prompt, tools),
          pictures.take(), tools.names};
}

ChatPrompt read_messages(const JsonFields& body, const Model& model, ChatFormat format,
                         bool add_generation_prompt, const PictureSource& source) {
  for (const char* field : {"functions", "function_call"}) {
    const json::value* value = body.find(field);
    if (value != nullptr && !asks_nothing(*value) && *value != "none" && *value != "auto") {
      refuse_field(field);
    }
  }
  const auto or_null = [&](std::string_view field) {
    const json::value* value = body.find(field);
    return value == nullptr ? json::value(nullptr) : *value;
  };
  const Tools tools = read_tools(or_null("tools"), or_null("tool_choice"));
  Conversation conversation{{}, {model, source}};
  for (const JsonFields& message : read_objects(body, "messages")) {
    conversation.messages.push_back(read_message(message, conversation));
  }
  if (conversation.messages.empty()) {
    throw_error(ErrorKind::kUsage, "messages: expected an array of at least one");
  }
  return conversation.prompt(model, format, tools, add_generation_prompt);
}

void ask_chat(ChatPrompt prompt, const Model& model, Request options, ApiRequest& out) {
  options.prompt.tokens = std::move(prompt.tokens);
  out.pictures = std::move(prompt.pictures);
  out.tools = std::move(prompt.tools);
  if (!out.tools.empty()) options.options.shown = tool_marker_tokens(model.tokenizer());
  out.requests.push_back(std::move(options));
}

void refuse_tools(const JsonFields& body) {
  for (const char* field : {"tools", "functions", "function_call", "tool_choice"}) {
    const json::value* value = body.find(field);
    if (value != nullptr && !asks_nothing(*value) && *value != "none" && *value != "auto") {
      refuse_field(field);
    }
  }
}

}  // namespace drover
