// Conversations as tokens. The formats of the Llama 4 family and its relatives are rendered here
// and not by a Jinja interpreter: the template of a file only tells which of them it is, and in
// which variant.
//
// Only the format itself makes control tokens. Roles, contents, tools, calls and results are
// encoded as a user's text, so that "<|eot|>" in a message stays seven characters and nothing that
// is said can forge a turn or an image.
//
// Pure functions, thread-safe.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/picture_tokens.h"
#include "text/tokenizer.h"
#include "text/tools.h"

namespace drover {

enum class ChatFormat { kNone, kLlama4, kLlama3, kChatMl };

// A piece of a message: a text, or a picture.
struct Part {
  std::string text;
  std::optional<PictureTokens> picture = std::nullopt;
};

struct Message {
  std::string role;  // system, user, assistant, tool
  std::vector<Part> content;
  std::vector<ToolCall> tool_calls = {};  // of an assistant, after the content

  Message(std::string role, std::string text) : role(std::move(role)), content{{std::move(text)}} {}
  Message(std::string role, std::vector<Part> content)
      : role(std::move(role)), content(std::move(content)) {}
};

// "none", "llama4", "llama3", "chatml"; the other way throws kUsage for any other name.
std::string_view chat_format_name(ChatFormat format);
ChatFormat chat_format_from_name(std::string_view name);

// The format whose markers the chat template uses, or, without a template, whose tokens the
// vocabulary has; kNone when there is none, or when it lacks the format's control tokens.
ChatFormat detect_chat_format(const Vocabulary& vocabulary);

// The tokens of a conversation, begin-of-text included where the format has it. With
// `add_generation_prompt` the header of an assistant's turn follows, ready for generation.
// kUnsupported for kNone, when the vocabulary lacks a control token of the format, and for a
// picture in another format than Llama 4, or there in a system's or a tool's turn.
//
// The text is that of the Hugging Face templates:
// - Llama 4 (spec 8): a first system message is trimmed, other contents stand as they are.
// - Llama 3: all contents are trimmed. A template that speaks of a "Cutting Knowledge Date" (3.1
//   and later) always has a system turn, which begins with the model's dates; today's is the
//   template's constant 26 Jul 2024, so that results do not change from day to day.
// - In both (Llama 3 from 3.1 on) a tool's turn is headed "ipython", its content a JSON string.
// - ChatML: contents stand as they are; if the template has a default system message, it stands
//   before a conversation that does not begin with one of its own.
//
// Tools, where there are any, and calls stand there as follows.
// - Llama 4 and Llama 3: JSON indented by 4 before the first user's message, which is then trimmed,
//   with the instruction to answer in JSON; a system turn says "Environment: ipython" first. Calls
//   are {"name": ..., "parameters": ...}, in Llama 4 after the content between <|python_start|> and
//   <|python_end|> (where the vocabulary has them), in Llama 3 in place of the content, the way its
//   template has it. That template takes one call only; here more are joined by "; ".
// - Llama 4 with a template that asks for "[func_name1(" (the releases since May 2025, vLLM's): the
//   tools stand in the system turn, after the instruction that the template itself holds, and calls
//   are a Python list. Arguments are Python literals there; the template puts every one in quotes,
//   from which a model learns to write numbers as strings.
// - ChatML: the Hermes form, as Qwen's templates have it, for all: tools in <tools> at the end of
//   the system turn, calls as <tool_call> after the content, results as <tool_response> in a user's
//   turn. Where neither the request nor the template knows of tools, results keep a turn of their
//   own, headed by their role.
// A call that is required is asked for in a sentence of ours after the tools.
//
// The tokens are those of that text, with one decision where texts do not settle it. The blank line
// after a header is a token of its own, as in Meta's own encoder, with which the models were
// trained; encoding the whole text at once would join it with a content that itself begins with a
// line break (spec 8.1). ChatML has no such encoder; there, role, line break and content are
// encoded together, as when the whole text is.
std::vector<Token> render_chat(ChatFormat format, const Tokenizer& tokenizer,
                               std::span<const Message> messages, bool add_generation_prompt,
                               const Tools& tools = {});

// What follows the content of an assistant's turn when a user answers it: the end of that turn, the
// user's, and the header of the next. For a conversation of which only the tokens are left.
std::vector<Token> render_next_turn(ChatFormat format, const Tokenizer& tokenizer,
                                    const Message& user);

// The tokens that end an assistant's turn: those of the format that the vocabulary has, and the
// vocabulary's own stops. Increasing.
std::vector<Token> chat_stop_tokens(ChatFormat format, const Tokenizer& tokenizer);

// The control tokens that mark tool calls in an answer. A ToolCallParser (tool_calls.h) has to see
// their text, so whoever makes text of an answer shows these while it hides others. Increasing.
std::vector<Token> tool_marker_tokens(const Tokenizer& tokenizer);

}  // namespace drover
