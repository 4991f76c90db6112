#include "api/messages.h"

#include "api/body.h"
#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

PictureTokens read_picture(const JsonFields& part, PictureReader& pictures) {
  const json::value* url = part.find("image_url");
  const auto inner = url != nullptr && url->is_object() ? part.fields("image_url") : std::nullopt;
  const std::string_view text =
      inner ? inner->required_text("url") : part.required_text("image_url");
  return pictures.read(text, part.where());
}

Part read_part(const json::value& value, const std::string& where, PictureReader& pictures) {
  if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
  const JsonFields part(value.get_object(), where);
  const std::string_view type = part.required_text("type");
  if (type == "text") return {std::string(part.required_text("text"))};
  if (type == "image_url") return {"", read_picture(part, pictures)};
  throw_error(ErrorKind::kUsage, "{}: type: expected text or image_url, got {}", where,
              printable(type));
}

// What an assistant called, {"function": {"name": ..., "arguments": JSON in a string}} each.
std::vector<ToolCall> read_tool_calls(const JsonFields& message) {
  std::vector<ToolCall> out;
  const json::value* calls = message.find("tool_calls");
  if (calls == nullptr || asks_nothing(*calls)) return out;
  if (!calls->is_array()) {
    throw_error(ErrorKind::kUsage, "{}: tool_calls: expected an array", message.where());
  }
  for (const json::value& value : calls->get_array()) {
    const std::string where = fmt::format("{}.tool_calls[{}]", message.where(), out.size());
    if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
    const JsonFields function = JsonFields(value.get_object(), where).required_fields("function");
    ToolCall call{std::string(function.required_text("name")), json::object()};
    if (const json::value* arguments = function.find("arguments"); arguments != nullptr) {
      call.arguments =
          arguments->is_string() ? read_tool_arguments(arguments->get_string()) : *arguments;
    }
    out.push_back(std::move(call));
  }
  return out;
}

Message read_message(const JsonFields& message, PictureReader& pictures) {
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
  for (const json::value& value : content->get_array()) {
    const std::string where = fmt::format("{}.content[{}]", message.where(), parts.size());
    parts.push_back(read_part(value, where, pictures));
  }
  Message out(role, std::move(parts));
  out.tool_calls = std::move(calls);
  return out;
}

}  // namespace

void refuse_tools(const JsonFields& body) {
  for (const char* field : {"tools", "functions", "function_call", "tool_choice"}) {
    const json::value* value = body.find(field);
    if (value != nullptr && !asks_nothing(*value) && *value != "none" && *value != "auto") {
      refuse_field(field);
    }
  }
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
  const json::value* messages = body.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) {
    throw_error(ErrorKind::kUsage, "messages: expected an array of at least one");
  }
  ChatPrompt out;
  PictureReader pictures(model, source);
  std::vector<Message> read;
  for (const json::value& value : messages->get_array()) {
    const std::string where = fmt::format("messages[{}]", read.size());
    if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
    read.push_back(read_message({value.get_object(), where}, pictures));
  }
  out.tokens = render_chat(format, model.tokenizer(), read, add_generation_prompt, tools);
  out.pictures = pictures.take();
  out.tools = tools.names;
  return out;
}

}  // namespace drover
