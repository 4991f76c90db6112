#include "api/messages.h"

#include "api/body.h"
#include "api/data_url.h"
#include "base/error.h"
#include "engine/picture_encoder.h"
#include "image/decode.h"

namespace drover {
namespace {

namespace json = boost::json;

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

Part read_part(const json::value& value, const std::string& where, const Model& model,
               std::vector<TiledImage>& pictures) {
  if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
  const JsonFields part(value.get_object(), where);
  const std::string_view type = part.required_text("type");
  if (type == "text") return {std::string(part.required_text("text"))};
  if (type == "image_url") return {"", read_picture(part, model, pictures)};
  throw_error(ErrorKind::kUsage, "{}: type: expected text or image_url, got {}", where,
              printable(type));
}

Message read_message(const JsonFields& message, const Model& model,
                     std::vector<TiledImage>& pictures) {
  std::string role(message.required_text("role"));
  if (role == "developer") role = "system";
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    throw_error(ErrorKind::kUsage,
                "{}: role: expected system, developer, user, assistant or tool, got {}",
                message.where(), printable(role));
  }
  if (const json::value* calls = message.find("tool_calls");
      calls != nullptr && !asks_nothing(*calls)) {
    refuse_field(message.where() + ": tool_calls");
  }
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
    const std::string where = fmt::format("{}.content[{}]", message.where(), parts.size());
    parts.push_back(read_part(value, where, model, pictures));
  }
  return {role, std::move(parts)};
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

std::vector<Token> read_messages(const JsonFields& body, const Model& model, ChatFormat format,
                                 bool add_generation_prompt, std::vector<TiledImage>& pictures) {
  refuse_tools(body);
  const json::value* messages = body.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) {
    throw_error(ErrorKind::kUsage, "messages: expected an array of at least one");
  }
  std::vector<Message> read;
  for (const json::value& value : messages->get_array()) {
    const std::string where = fmt::format("messages[{}]", read.size());
    if (!value.is_object()) throw_error(ErrorKind::kUsage, "{}: expected an object", where);
    read.push_back(read_message({value.get_object(), where}, model, pictures));
  }
  return render_chat(format, model.tokenizer(), read, add_generation_prompt);
}

}  // namespace drover
