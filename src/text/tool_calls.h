// Finds the calls of tools in an answer while it comes, and hands on the rest as text.
//
// Models do not keep to one form, so all of them are looked for everywhere, whatever the chat
// format:
//   [f(a=1, b="x"), g()]                             Llama 4's Python list
//   {"name": "f", "parameters": {...}}               Llama 3 and 4; also "arguments", also with
//                                                    "type": "function", several after each other
//                                                    with ; or , or nothing between, or in a list
//   <tool_call>{"name": "f", "arguments": {...}}</tool_call>     Hermes, Qwen
//   <function=f>{...}</function>                     Llama 3's other form
// each also between <|python_start|> and <|python_end|>, after <|python_tag|>, in a code fence, and
// after prose. Those three markers are control tokens and never part of the text.
//
// Only a tool of the request is called: whatever names another, or looks like a call without being
// one, stays text, byte for byte, and so does what is cut off or damaged before its arguments
// begin. Text is held back only while it can still become a call; white space at the beginning of
// an answer, between calls and after them belongs to the calls, if there are any. How the answer is
// cut into pieces does not matter: the events, those of one kind joined, follow from the bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/literal_to_json.h"

namespace drover {

struct ToolEvent {
  enum class Kind {
    kText,       // text: a piece of the answer's text
    kCallBegin,  // text: the name of the tool
    kArguments,  // text: a piece of the arguments; all of a call's together are a JSON object
    kCallEnd,    // whole: false if the answer ended or broke off within the arguments, whose pieces
               // are then the beginning of an object, and not parseable, so nobody runs half a call
  };
  Kind kind;
  int64_t index = -1;  // of the call: 0, 1, ...
  std::string text = {};
  bool whole = true;
};

struct ToolCallOptions {
  std::vector<std::string> names = {};  // of the tools; none: everything is text
  // Arguments are told while they come. Otherwise a call is told when it is complete, and one that
  // is damaged becomes text: for answers that nobody reads before their end.
  bool stream_arguments = true;
  int64_t max_calls = 128;  // what comes after them is text
};

// One per answer; not thread-safe. Never throws but for memory, of which it holds what is
// undecided, at most 1 MiB, and the longest argument in parentheses.
class ToolCallParser {
 public:
  explicit ToolCallParser(ToolCallOptions options);

  // The next piece, valid UTF-8 in all. If pieces are whole characters, so are those of the events.
  std::vector<ToolEvent> push(std::string_view piece);

  // The end of the answer.
  std::vector<ToolEvent> finish();

  int64_t calls() const { return calls_; }  // begun so far

 private:
  enum class State {
    kOutside,
    kTag,        // < and what follows
    kFence,      // ` `` ```
    kFenceWord,  // its language
    // [f(a=1), ...]
    kList,
    kListName,
    kArgument,
    kArgumentName,
    kArgumentEquals,
    kArgumentValue,
    kAfterArgument,
    kAfterCall,
    kMaybeLink,  // [f()] has come; with a ( it is a link
    // {"name": ...}, also in a list
    kObject,
    kKey,
    kColon,
    kMember,
    kName,
    kParameters,
    kOtherValue,
    kAfterMember,
    kAfterObject,
    kNextObject,
    // <function=f>{...}
    kFunctionName,
    kFunctionBody,
  };
  enum class Step { kTake, kAgain, kFail };

  void run();
  Step step(char c);
  Step outside(char c);
  Step tag();
  Step fence(char c);
  Step list(char c);
  Step argument_value(char c);
  Step object(char c);
  Step close_object();
  Step function(char c);
  Step parameters(char c, State next);
  bool other_value();

  void enter_object();
  void fail();
  void leave();
  void say_text(char c);
  bool begin_call();
  void end_call(bool whole);
  void flush_arguments();
  bool known(std::string_view name) const;
  bool known_prefix(std::string_view prefix) const;

  ToolCallOptions options_;
  std::vector<ToolEvent> events_;

  // The bytes that are still undecided, buffer_[begin_, at_), and those that come next. Once a
  // candidate fails, its first byte is text and the rest is looked at again.
  std::string buffer_;
  size_t begin_ = 0, at_ = 0;
  bool drop_ = false;  // the bytes up to here are part of a call: they need not be kept

  State state_ = State::kOutside;
  int64_t calls_ = 0;
  bool open_ = false;           // a call has begun and not ended
  bool text_since_ = false;     // since the last call or the beginning, there was text
  char last_ = 0, before_ = 0;  // the last two bytes of text but white space

  // What stands before a call and would be part of it.
  size_t tag_at_ = 0;  // after begin_
  size_t ticks_ = 0, fence_word_ = 0;
  bool separator_ = false, fence_ = false, tool_call_ = false;
  // What a call has left open, to be closed after it.
  bool fence_open_ = false, tool_call_open_ = false, function_open_ = false;

  // The call in the making.
  std::string name_, key_, arguments_, other_;
  LiteralToJson literal_;
  char quote_ = 0;
  size_t list_calls_ = 0, call_arguments_ = 0;
  bool pending_ = false;  // f() is complete but may yet turn out to be a link
  bool in_list_ = false, nested_ = false, has_name_ = false, has_arguments_ = false;
  bool is_function_ = false, done_ = false;
};

}  // namespace drover
