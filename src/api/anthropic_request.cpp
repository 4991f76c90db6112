#include <utility>

#include "api/anthropic.h"
#include "api/body.h"
#include "api/data_url.h"
#include "api/messages.h"
#include "api/options.h"
#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

// What would change the answer and is not done.
constexpr const char* kRefused[] = {"container", "context_management", "mcp_servers",
                                    "output_format"};

void expect_fields(const JsonFields& body) {
  for (const char* field : kRefused) {
    const json::value* value = body.find(field);
    if (value != nullptr && !asks_nothing(*value)) refuse_field(field);
  }
  const auto thinking = body.fields("thinking");
  if (thinking && thinking->required_text("type") != "disabled") refuse_field("thinking");
  const auto output = body.fields("output_config");
  if (output && output->has("format")) refuse_field("output_config.format");
}

json::array read_functions(const JsonFields& body) {
  json::array out;
  for (const JsonFields& tool : read_objects(body, "tools")) {
    const std::string_view type = tool.text("type").value_or("custom");
    if (type != "custom") {
      throw_error(ErrorKind::kUnsupported, "{}: type: expected custom, got {}", tool.where(),
                  printable(type));
    }
    json::object function{{"name", tool.required_text("name")}};
    if (const auto description = tool.text("description")) function["description"] = *description;
    function["parameters"] = tool.required_fields("input_schema").object();
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

// In OpenAI's words.
json::value read_choice(const JsonFields& body) {
  const auto choice = body.fields("tool_choice");
  if (!choice) return nullptr;
  const std::string_view type = choice->required_text("type");
  if (type == "tool") return {{"type", "function"}, {"name", choice->required_text("name")}};
  if (type != "auto" && type != "any" && type != "none") {
    throw_error(ErrorKind::kUsage, "tool_choice: type: expected auto, any, tool or none, got {}",
                printable(type));
  }
  return json::value(type);
}

Part read_picture(const JsonFields& block, Conversation& to) {
  const JsonFields source = block.required_fields("source");
  const std::string where = block.where() + ".source";
  const std::string_view type = source.required_text("type");
  if (type == "url") return {"", to.pictures.read(source.required_text("url"), where)};
  if (type != "base64") {
    throw_error(ErrorKind::kUnsupported, "{}: type: expected base64 or url, got {}", where,
                printable(type));
  }
  source.required_text("media_type");  // what the bytes are shows in them
  return {"", to.pictures.read(bytes_of_base64(source.required_text("data"), where), where)};
}

[[noreturn]] void refuse_block(const JsonFields& block, std::string_view expected) {
  throw_error(ErrorKind::kUnsupported, "{}: type: expected {}, got {}", block.where(), expected,
              printable(block.required_text("type")));
}

// A text, or an array of blocks; of some, pictures too.
std::vector<Part> read_blocks(const JsonFields& of, std::string_view key, Conversation& to,
                              bool pictures) {
  const json::value* content = of.find(key);
  if (content == nullptr || !content->is_array()) return {{std::string(of.required_text(key))}};
  std::vector<Part> out;
  for (const JsonFields& block : read_objects(of, key)) {
    const std::string_view type = block.required_text("type");
    if (type == "text") {
      out.push_back({std::string(block.required_text("text"))});
    } else if (type == "image" && pictures) {
      out.push_back(read_picture(block, to));
    } else {
      refuse_block(block, pictures ? "text or image" : "text");
    }
  }
  return out;
}

// A result may have nothing to say; one that failed says so first.
Message read_result(const JsonFields& block, Conversation& to) {
  block.required_text("tool_use_id");
  std::vector<Part> parts;
  if (block.boolean("is_error").value_or(false)) parts.push_back({"Error: "});
  if (block.has("content")) {
    for (Part& part : read_blocks(block, "content", to, /*pictures=*/true)) {
      parts.push_back(std::move(part));
    }
  }
  if (parts.empty()) parts.push_back({""});
  return {"tool", std::move(parts)};
}

// Results are turns of their own in the prompt: a user's message becomes as many as it has.
void add_message(const JsonFields& message, Conversation& to) {
  const std::string role(message.required_text("role"));
  if (role != "user" && role != "assistant" && role != "system") {
    throw_error(ErrorKind::kUsage, "{}: role: expected user, assistant or system, got {}",
                message.where(), printable(role));
  }
  const json::value* content = message.find("content");
  if (content == nullptr || !content->is_array()) {
    to.messages.emplace_back(role, std::string(message.required_text("content")));
    return;
  }
  const bool user = role == "user", assistant = role == "assistant";
  Message said(role, std::vector<Part>());
  const auto turn = [&] {
    if (!said.content.empty() || !said.tool_calls.empty()) to.messages.push_back(std::move(said));
    said = Message(role, std::vector<Part>());
  };
  for (const JsonFields& block : read_objects(message, "content")) {
    const std::string_view type = block.required_text("type");
    if (type == "text") {
      said.content.push_back({std::string(block.required_text("text"))});
    } else if (type == "image" && user) {
      said.content.push_back(read_picture(block, to));
    } else if (type == "tool_result" && user) {
      turn();
      to.messages.push_back(read_result(block, to));
    } else if (type == "tool_use" && assistant) {
      said.tool_calls.push_back(
          {std::string(block.required_text("name")), block.required_fields("input").object()});
    } else if (!(assistant && (type == "thinking" || type == "redacted_thinking"))) {
      // What another model thought is not shown to this one.
      refuse_block(block, user        ? "text, image or tool_result"
                          : assistant ? "text, tool_use or thinking"
                                      : "text");
    }
  }
  turn();
}

ChatPrompt read_conversation(const JsonFields& body, const Model& model, ChatFormat format,
                             const PictureSource& source) {
  const Tools tools = read_tools(read_functions(body), read_choice(body));
  Conversation conversation{{}, {model, source}};
  if (body.has("system")) {
    conversation.messages.emplace_back(
        "system", read_blocks(body, "system", conversation, /*pictures=*/false));
  }
  const size_t before = conversation.messages.size();
  for (const JsonFields& message : read_objects(body, "messages")) {
    add_message(message, conversation);
  }
  std::vector<Message>& messages = conversation.messages;
  if (messages.size() == before) {
    throw_error(ErrorKind::kUsage, "messages: expected an array of at least one");
  }
  // What an assistant has said last is the beginning of the answer.
  std::string begun;
  if (messages.back().role == "assistant" && messages.back().tool_calls.empty()) {
    for (const Part& part : messages.back().content) begun += part.text;
    messages.pop_back();
  }
  ChatPrompt out = conversation.prompt(model, format, tools);
  model.tokenizer().encode(begun, out.tokens);
  return out;
}

}  // namespace

void read_message_request(const JsonFields& body, const Model& model, ChatFormat format,
                          const PictureSource& source, ApiRequest& out) {
  expect_fields(body);
  Request options = read_options(body, model, format, out);
  body.required_integer("max_tokens");
  read_most_tokens(body, "max_tokens", options);
  options.options.stop = read_stops(body, "stop_sequences");
  const auto choice = body.fields("tool_choice");
  if (choice && choice->boolean("disable_parallel_tool_use").value_or(false)) out.most_calls = 1;
  ask_chat(read_conversation(body, model, format, source), model, std::move(options), out);
}

json::object count_tokens_answer(const json::object& body, const Model& model, ChatFormat format) {
  json::object out;
  reading_words_of_caller([&] {
    const JsonFields fields(body, "body");
    expect_fields(fields);
    out["input_tokens"] = read_conversation(fields, model, format, {}).tokens.size();
  });
  return out;
}

}  // namespace drover
