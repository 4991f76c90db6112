#include "text/chat_format.h"

#include <algorithm>
#include <initializer_list>

#include "base/error.h"
#include "text/python_json.h"
#include "text/utf8.h"

namespace drover {
namespace {

// The control tokens of a format.
struct Markers {
  ChatFormat format;
  std::string_view name;
  std::string_view open;   // before the role; the marker that templates are recognised by
  std::string_view close;  // after the role; empty when a line break stands there
  std::string_view end;    // after the content
  std::string_view stops[3];
};

constexpr Markers kFormats[] = {
    {ChatFormat::kLlama4,
     "llama4",
     "<|header_start|>",
     "<|header_end|>",
     "<|eot|>",
     {"<|eot|>", "<|eom|>", "<|end_of_text|>"}},
    {ChatFormat::kLlama3,
     "llama3",
     "<|start_header_id|>",
     "<|end_header_id|>",
     "<|eot_id|>",
     {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}},
    {ChatFormat::kChatMl,
     "chatml",
     "<|im_start|>",
     "",
     "<|im_end|>",
     {"<|im_end|>", "<|endoftext|>", ""}},
};

const Markers* markers_of(ChatFormat format) {
  for (const Markers& markers : kFormats) {
    if (markers.format == format) return &markers;
  }
  return nullptr;
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// What Python's str.strip takes away, and so `trim` in a template: more than \s of the patterns.
bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view trim_begin(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const Utf8Step step = utf8_step(text, begin);
    if (!is_python_space(step.code_point)) break;
    begin += step.length;
  }
  return text.substr(begin);
}

std::string_view trim_end(std::string_view text) {
  size_t end = 0;  // of the last character that stays
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    at += step.length;
    if (!is_python_space(step.code_point)) end = at;
  }
  return text.substr(0, end);
}

std::string_view trim(std::string_view text) { return trim_end(trim_begin(text)); }

// The texts that a Jinja template can emit as they are: what stands between its tags, and the
// string constants within them.
std::vector<std::string> constant_texts(std::string_view jinja) {
  std::vector<std::string> out;
  for (size_t at = 0; at < jinja.size();) {
    const size_t tag = std::min(jinja.find("{{", at), jinja.find("{%", at));
    out.emplace_back(jinja.substr(at, tag == std::string_view::npos ? tag : tag - at));
    if (tag == std::string_view::npos) break;
    const std::string_view close = jinja[tag + 1] == '{' ? "}}" : "%}";
    at = tag + 2;
    while (at < jinja.size() && jinja.substr(at, 2) != close) {
      const char quote = jinja[at++];
      if (quote != '\'' && quote != '"') continue;
      std::string text;
      for (; at < jinja.size() && jinja[at] != quote; ++at) {
        if (jinja[at] == '\\' && at + 1 < jinja.size()) {
          ++at;
          text += jinja[at] == 'n' ? '\n' : jinja[at];
        } else {
          text += jinja[at];
        }
      }
      ++at;
      out.push_back(std::move(text));
    }
    at += 2;
  }
  return out;
}

// The system message that a ChatML template inserts when the conversation has none: a constant
// that holds a whole system turn.
std::optional<std::string> default_system_message(std::string_view chat_template) {
  static constexpr std::string_view kOpen = "<|im_start|>system\n", kEnd = "<|im_end|>";
  for (const std::string& text : constant_texts(chat_template)) {
    const size_t open = text.find(kOpen);
    if (open == std::string::npos) continue;
    const size_t end = text.find(kEnd, open);
    if (end == std::string::npos) continue;
    return text.substr(open + kOpen.size(), end - open - kOpen.size());
  }
  return std::nullopt;
}

// The instructions of a Llama 4 template that wants calls as a Python list. They are long and the
// template has them, so they are taken from there.
struct PythonicInstructions {
  std::string system;        // a system message, for conversations without one
  std::string after_system;  // what follows the conversation's own
  std::string_view after_tools;
};

std::optional<PythonicInstructions> pythonic_instructions(std::string_view chat_template) {
  PythonicInstructions out;
  for (std::string& text : constant_texts(chat_template)) {
    if (!contains(text, "[func_name1(")) continue;
    (text.front() == '\n' ? out.after_system : out.system) = std::move(text);
  }
  if (out.system.empty() || out.after_system.empty()) return std::nullopt;
  if (contains(chat_template, R"((tools | tojson(indent=4)) ~ "\n")")) out.after_tools = "\n";
  return out;
}

// What asks for a call, where one is required.
std::string requirement(const Tools& tools) {
  if (!tools.required) return "";
  if (tools.names.size() == 1) return fmt::format("Call the function {} now.", tools.names[0]);
  return "Call one of the functions now.";
}

// What Llama 3 and 4 put before the first user's message.
std::string json_instructions(const Tools& tools) {
  std::string out =
      "Given the following functions, please respond with a JSON for a function call with its "
      "proper arguments that best answers the given prompt.\n\n"
      "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name "
      "and its value}.Do not use variables.\n\n";
  for (const auto& tool : tools.definitions) out += python_json(tool, 4) + "\n\n";
  if (tools.required) out += requirement(tools) + "\n\n";
  return out;
}

// What ChatML puts at the end of the system message.
std::string hermes_instructions(const Tools& tools) {
  std::string out =
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
      "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
  for (const auto& tool : tools.definitions) out += "\n" + python_json(tool);
  out +=
      "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
      "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
      "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";
  if (tools.required) out += "\n\n" + requirement(tools);
  return out;
}

std::string json_call(const ToolCall& call, std::string_view arguments_key) {
  return fmt::format("{{\"name\": {}, \"{}\": {}}}", json_string(call.name), arguments_key,
                     python_json(call.arguments));
}

std::string python_list(std::span<const ToolCall> calls) {
  std::string out = "[";
  for (const ToolCall& call : calls) {
    if (out.size() > 1) out += ", ";
    out += call.name + '(';
    const char* between = "";
    if (const auto* arguments = call.arguments.if_object()) {
      for (const auto& [key, value] : *arguments) {
        out += between;
        between = ", ";
        out += fmt::format("{}={}", std::string_view(key), python_literal(value));
      }
    }
    out += ')';
  }
  return out + ']';
}

// The instructions and then the content, trimmed.
std::vector<Part> with_instructions(std::string instructions, std::vector<Part> content) {
  if (!content.empty() && !content.back().picture) {
    content.back().text = trim_end(content.back().text);
  }
  if (content.empty() || content.front().picture) content.insert(content.begin(), Part{});
  Part& first = content.front();
  first.text = instructions + std::string(trim_begin(first.text));
  return content;
}

// Tokens in the making.
class Writer {
 public:
  Writer(const Markers& markers, const Tokenizer& tokenizer)
      : markers_(markers), tokenizer_(tokenizer) {}

  void bos() {
    if (const auto token = tokenizer_.vocabulary().bos) out_.push_back(*token);
  }
  void control(std::string_view text) {
    const auto token = tokenizer_.special(text);
    if (!token) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: chat format {}: expected a control token {}, got none",
                  tokenizer_.vocabulary().source, markers_.name, text);
    }
    out_.push_back(*token);
  }
  // One that the format can do without.
  void control_if_there(std::string_view text) {
    if (const auto token = tokenizer_.special(text)) out_.push_back(*token);
  }
  void text(std::string_view text) { tokenizer_.encode(text, out_); }

  // The header of a turn of Llama 3 and 4.
  void header(std::string_view role) {
    control(markers_.open);
    text(role);
    control(markers_.close);
    text("\n\n");
  }
  void end() { control(markers_.end); }
  void turn(std::string_view role, std::string_view content) {
    header(role);
    text(content);
    end();
  }
  void turn(std::string_view role, std::span<const Part> content) {
    header(role);
    for (const Part& part : content) {
      if (part.picture) {
        append_picture(tokenizer_, *part.picture, out_);
      } else {
        text(part.text);
      }
    }
    end();
  }

  std::vector<Token> take() { return std::move(out_); }

 private:
  const Markers& markers_;
  const Tokenizer& tokenizer_;
  std::vector<Token> out_;
};

// A content in which there can be no picture.
std::string text_of(const Message& message) {
  std::string out;
  for (const Part& part : message.content) {
    if (part.picture) {
      throw Error(
          ErrorKind::kUnsupported,
          fmt::format("a picture in a turn of '{}': expected text", printable(message.role)),
          "pictures go into a user's turns, in the chat format llama4");
    }
    out += part.text;
  }
  return out;
}

bool is_tool(const Message& message) { return message.role == "tool" || message.role == "ipython"; }

// The system message that a conversation begins with, which is taken off it.
const Message* take_system(std::span<const Message>& messages) {
  if (messages.empty() || messages[0].role != "system") return nullptr;
  const Message* system = &messages[0];
  messages = messages.subspan(1);
  return system;
}

void write_llama4(Writer& writer, std::string_view chat_template, std::span<const Message> messages,
                  bool add_generation_prompt, const Tools& tools) {
  const auto pythonic = pythonic_instructions(chat_template);
  bool json_tools = !tools.names.empty() && !pythonic;
  writer.bos();
  const Message* own_system = take_system(messages);
  std::optional<std::string> system;
  if (own_system) {
    system = (json_tools ? "Environment: ipython\n" : "") + std::string(trim(text_of(*own_system)));
  }
  if (pythonic && !tools.names.empty()) {
    system = system ? *system + pythonic->after_system : pythonic->system;
    *system += python_json(tools.definitions, 4);
    *system += pythonic->after_tools;
    if (tools.required) *system += "\n" + requirement(tools);
  }
  if (system) writer.turn("system", *system);
  if (json_tools && (messages.empty() || messages[0].role != "user")) {
    writer.turn("user", trim_end(json_instructions(tools)));
    json_tools = false;
  }
  for (const Message& message : messages) {
    if (json_tools) {
      writer.turn("user", with_instructions(json_instructions(tools), message.content));
      json_tools = false;
    } else if (!message.tool_calls.empty()) {
      writer.header("assistant");
      if (pythonic) {
        writer.text(text_of(message) + python_list(message.tool_calls));
      } else {
        writer.control_if_there("<|python_start|>");
        writer.text(text_of(message));
        writer.control_if_there("<|python_end|>");
        std::string calls;
        for (const ToolCall& call : message.tool_calls) calls += json_call(call, "parameters");
        writer.text(calls);
      }
      writer.end();
    } else if (is_tool(message)) {
      writer.turn("ipython", json_string(text_of(message)));
    } else if (message.role == "system") {
      writer.turn(message.role, text_of(message));
    } else {
      writer.turn(message.role, message.content);
    }
  }
  if (add_generation_prompt) writer.header("assistant");
}

void write_llama3(Writer& writer, std::string_view chat_template, std::span<const Message> messages,
                  bool add_generation_prompt, const Tools& tools) {
  // 3.1 and later.
  const bool dated = contains(chat_template, "Cutting Knowledge Date");
  writer.bos();
  if (dated) {
    std::string system = tools.names.empty() ? "" : "Environment: ipython\n";
    system += "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    if (const Message* own_system = take_system(messages)) system += trim(text_of(*own_system));
    writer.turn("system", system);
  } else if (const Message* own_system = take_system(messages)) {
    writer.turn("system", trim(text_of(*own_system)));
  }
  std::string instructions = tools.names.empty() ? "" : json_instructions(tools);
  if (!instructions.empty() && (messages.empty() || messages[0].role != "user")) {
    writer.turn("user", trim_end(instructions));
    instructions.clear();
  }
  for (const Message& message : messages) {
    if (!message.tool_calls.empty()) {
      std::string calls;
      for (const ToolCall& call : message.tool_calls) {
        calls += (calls.empty() ? "" : "; ") + json_call(call, "parameters");
      }
      writer.turn("assistant", calls);
    } else if (dated && is_tool(message)) {
      writer.turn("ipython", json_string(text_of(message)));
    } else {
      writer.turn(message.role, instructions + std::string(trim(text_of(message))));
      instructions.clear();
    }
  }
  if (add_generation_prompt) writer.header("assistant");
}

void write_chat_ml(Writer& writer, const Markers& markers, std::string_view chat_template,
                   std::span<const Message> messages, bool add_generation_prompt,
                   const Tools& tools) {
  const auto turn = [&](std::string_view role, std::string_view content) {
    writer.control(markers.open);
    writer.text(fmt::format("{}\n{}", role, content));
    writer.control(markers.end);
    writer.text("\n");
  };
  const bool hermes = !tools.names.empty() || contains(chat_template, "<tool_response>");
  if (contains(chat_template, "bos_token")) writer.bos();
  std::optional<std::string> system;
  if (const Message* own_system = take_system(messages)) {
    system = text_of(*own_system);
  } else if (!messages.empty()) {
    system = default_system_message(chat_template);
  }
  if (!tools.names.empty()) {
    system = (system ? *system + "\n\n" : "") + hermes_instructions(tools);
  }
  if (system) turn("system", *system);
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    if (!message.tool_calls.empty()) {
      std::string content = text_of(message);
      for (const ToolCall& call : message.tool_calls) {
        if (!content.empty()) content += '\n';
        content += fmt::format("<tool_call>\n{}\n</tool_call>", json_call(call, "arguments"));
      }
      turn("assistant", content);
    } else if (hermes && is_tool(message)) {
      // The results of parallel calls share a turn.
      std::string results = fmt::format("<tool_response>\n{}\n</tool_response>", text_of(message));
      for (; i + 1 < messages.size() && is_tool(messages[i + 1]); ++i) {
        results += fmt::format("\n<tool_response>\n{}\n</tool_response>", text_of(messages[i + 1]));
      }
      turn("user", results);
    } else {
      turn(message.role, text_of(message));
    }
  }
  if (add_generation_prompt) {
    writer.control(markers.open);
    writer.text("assistant\n");
  }
}

}  // namespace

std::string_view chat_format_name(ChatFormat format) {
  const Markers* markers = markers_of(format);
  return markers ? markers->name : "none";
}

ChatFormat chat_format_from_name(std::string_view name) {
  if (name == "none") return ChatFormat::kNone;
  for (const Markers& markers : kFormats) {
    if (markers.name == name) return markers.format;
  }
  throw_error(ErrorKind::kUsage, "chat format: expected llama4, llama3, chatml or none, got \"{}\"",
              printable(name));
}

ChatFormat detect_chat_format(const Vocabulary& vocabulary) {
  const auto has = [&](std::string_view text) {
    for (size_t i = 0; i < vocabulary.tokens.size() && i < vocabulary.kinds.size(); ++i) {
      if (vocabulary.kinds[i] == TokenKind::kControl && vocabulary.tokens[i] == text) return true;
    }
    return false;
  };
  for (const Markers& markers : kFormats) {
    const std::string_view chat_template = vocabulary.chat_template;
    if (!chat_template.empty() && !contains(chat_template, markers.open)) continue;
    if (!has(markers.open) || !has(markers.end)) continue;
    if (!markers.close.empty() && !has(markers.close)) continue;
    return markers.format;
  }
  return ChatFormat::kNone;
}

std::vector<Token> render_chat(ChatFormat format, const Tokenizer& tokenizer,
                               std::span<const Message> messages, bool add_generation_prompt,
                               const Tools& tools) {
  const Markers* markers = markers_of(format);
  if (!markers) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: the model has no chat format", tokenizer.vocabulary().source),
                "use it to continue text, or name a format");
  }
  Writer writer(*markers, tokenizer);
  const std::string_view chat_template = tokenizer.vocabulary().chat_template;
  switch (format) {
    case ChatFormat::kLlama4:
      write_llama4(writer, chat_template, messages, add_generation_prompt, tools);
      break;
    case ChatFormat::kLlama3:
      write_llama3(writer, chat_template, messages, add_generation_prompt, tools);
      break;
    case ChatFormat::kChatMl:
      write_chat_ml(writer, *markers, chat_template, messages, add_generation_prompt, tools);
      break;
    case ChatFormat::kNone:
      break;
  }
  return writer.take();
}

std::vector<Token> render_next_turn(ChatFormat format, const Tokenizer& tokenizer,
                                    const Message& user) {
  // What stands before does not show in what follows.
  const Message before[] = {{"user", "?"}, {"assistant", "!"}, user};
  const std::vector<Token> known =
      render_chat(format, tokenizer, std::span(before).first(1), /*add_generation_prompt=*/true);
  std::vector<Token> all = render_chat(format, tokenizer, before, /*add_generation_prompt=*/true);
  const std::vector<Token> said = tokenizer.encode("!");
  const size_t begin = known.size() + said.size();
  if (all.size() < begin || !std::equal(known.begin(), known.end(), all.begin()) ||
      !std::equal(said.begin(), said.end(), all.begin() + static_cast<int64_t>(known.size()))) {
    throw_error(ErrorKind::kUnsupported,
                "chat format: in {} a conversation cannot go on from its tokens alone",
                chat_format_name(format));
  }
  all.erase(all.begin(), all.begin() + static_cast<int64_t>(begin));
  return all;
}

std::vector<Token> chat_stop_tokens(ChatFormat format, const Tokenizer& tokenizer) {
  std::vector<Token> out = tokenizer.vocabulary().stops;
  if (const Markers* markers = markers_of(format)) {
    for (const std::string_view stop : markers->stops) {
      if (const auto token = tokenizer.special(stop)) out.push_back(*token);
    }
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::vector<Token> tool_marker_tokens(const Tokenizer& tokenizer) {
  std::vector<Token> out;
  for (const char* marker :
       {"<|python_start|>", "<|python_end|>", "<|python_tag|>", "<tool_call>", "</tool_call>"}) {
    if (const auto token = tokenizer.special(marker)) out.push_back(*token);
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace drover
