// The functions that a model may call, and its calls in a conversation, in the shapes of OpenAI's
// chat completions: what chat_format.h renders and tool_calls.h finds in an answer.
//
// What a choice can promise: "none" shows no functions, so no call is found; a named one shows only
// that one. Whether the model calls at all is its own decision: "required" and a named function
// tell it to, in the prompt, and only constrained decoding could force it. Who asked for a call
// must be ready for an answer without one.
//
// Pure functions, thread-safe.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

struct Tools {
  // {"type": "function", "function": {"name": ..., ...}}, only those that are shown, as they came.
  boost::json::array definitions;
  std::vector<std::string> names;  // theirs
  bool required = false;           // the model is told to call one
};

// Of a request's "tools" and "tool_choice", null where absent. Names are 1 to 128 of the characters
// [A-Za-z0-9_.:/-], so that a name cannot say anything in a prompt. The choice is "auto", "none",
// "required", "any" (the same) or {"type": "function", "function": {"name": ...}}, the name also
// without the inner object. Throws kUsage for other shapes, two tools of one name, a choice that
// names no tool, and a call required where there are no tools.
Tools read_tools(const boost::json::value& tools, const boost::json::value& choice);

// A call that an assistant made earlier in the conversation.
struct ToolCall {
  std::string name;
  boost::json::value arguments;  // an object, or what else the client sent
};

// The arguments of a call, which are JSON in a string: nothing at all means {}; what is no JSON
// stays a string, so that a conversation with a damaged call can go on.
boost::json::value read_tool_arguments(std::string_view text);

}  // namespace drover
