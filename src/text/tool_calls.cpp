#include "text/tool_calls.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "text/python_json.h"

namespace drover {
namespace {

constexpr size_t kMaxHeld = size_t{1} << 20;
constexpr size_t kMaxArgumentName = 128;
constexpr size_t kMaxFenceWord = 20;

constexpr std::string_view kMarkers[] = {"<|python_start|>", "<|python_end|>", "<|python_tag|>"};
constexpr std::string_view kToolCall = "<tool_call>", kToolCallEnd = "</tool_call>";
constexpr std::string_view kFunction = "<function=", kFunctionEnd = "</function>";
constexpr std::string_view kKeys[] = {"name", "parameters", "arguments", "type", "function", "id"};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

// What json_string() was made of.
std::string unquoted(std::string_view json) {
  std::string out;
  for (size_t at = 1; at + 1 < json.size(); ++at) {
    if (json[at] != '\\') {
      out += json[at];
      continue;
    }
    static constexpr std::string_view kNames = "nrtbf", kCodes = "\n\r\t\b\f";
    const char name = json[++at];
    if (name == 'u') {
      unsigned code = 0;
      std::from_chars(json.data() + at + 1, json.data() + at + 5, code, 16);
      out += static_cast<char>(code);
      at += 4;
    } else {
      const size_t known = kNames.find(name);
      out += known == std::string_view::npos ? name : kCodes[known];
    }
  }
  return out;
}

}  // namespace

ToolCallParser::ToolCallParser(ToolCallOptions options) : options_(std::move(options)) {
  std::sort(options_.names.begin(), options_.names.end());
}

std::vector<ToolEvent> ToolCallParser::push(std::string_view piece) {
  buffer_ += piece;
  run();
  flush_arguments();
  buffer_.erase(0, begin_);
  at_ -= begin_;
  begin_ = 0;
  return std::exchange(events_, {});
}

std::vector<ToolEvent> ToolCallParser::finish() {
  while (begin_ < buffer_.size() || open_) {
    if (pending_) {
      // [f() without the rest of the list.
      end_call(/*whole=*/true);
      begin_ = at_;
      leave();
      continue;
    }
    const bool nothing = buffer_.find_first_not_of(" \t\r\n,;", begin_) == std::string::npos;
    if (nothing && !open_ && calls_ > 0 && !text_since_) break;
    fail();
    run();
  }
  buffer_.clear();
  begin_ = at_ = 0;
  leave();
  return std::exchange(events_, {});
}

void ToolCallParser::run() {
  while (at_ < buffer_.size()) {
    const Step step = at_ - begin_ < kMaxHeld ? this->step(buffer_[at_]) : Step::kFail;
    if (step == Step::kFail) {
      fail();
      continue;
    }
    if (step == Step::kTake) ++at_;
    if (drop_) begin_ = at_;
    drop_ = open_;
  }
}

ToolCallParser::Step ToolCallParser::step(char c) {
  switch (state_) {
    case State::kOutside:
      return outside(c);
    case State::kTag:
      return tag();
    case State::kFence:
    case State::kFenceWord:
      return fence(c);
    case State::kArgumentValue:
      return argument_value(c);
    case State::kList:
    case State::kListName:
    case State::kArgument:
    case State::kArgumentName:
    case State::kArgumentEquals:
    case State::kAfterArgument:
    case State::kAfterCall:
    case State::kMaybeLink:
      return list(c);
    case State::kFunctionName:
    case State::kFunctionBody:
      return function(c);
    default:
      return object(c);
  }
}

// Text, and what may stand before a call.
ToolCallParser::Step ToolCallParser::outside(char c) {
  const bool held = at_ > begin_;
  if (c == '<') {
    tag_at_ = at_ - begin_;
    state_ = State::kTag;
    return Step::kTake;
  }
  if (!options_.names.empty()) {
    if (is_space(c) && (held || !text_since_)) return Step::kTake;
    // The value of a key in somebody's JSON is not a call.
    const bool value = !held && last_ == ':' && (before_ == '"' || before_ == '\'');
    if (c == '{' && !value) {
      in_list_ = false;
      enter_object();
      return Step::kTake;
    }
    if (c == '[' && !value) {
      list_calls_ = 0;
      state_ = State::kList;
      return Step::kTake;
    }
    if (c == '`') {
      ticks_ = 0;
      state_ = State::kFence;
      return Step::kAgain;
    }
    if ((c == ';' || c == ',') && calls_ > 0 && !text_since_ && !separator_) {
      separator_ = true;
      return Step::kTake;
    }
  }
  if (held) return Step::kFail;
  say_text(c);
  drop_ = true;
  return Step::kTake;
}

ToolCallParser::Step ToolCallParser::tag() {
  const std::string_view tag =
      std::string_view(buffer_).substr(begin_ + tag_at_, at_ + 1 - begin_ - tag_at_);
  for (const std::string_view marker : kMarkers) {
    if (tag == marker) {
      at_ = begin_ + tag_at_;
      buffer_.erase(at_, marker.size());
      state_ = State::kOutside;
      return Step::kAgain;
    }
    if (marker.starts_with(tag)) return Step::kTake;
  }
  if (options_.names.empty()) return Step::kFail;
  if (tag == kToolCall) {
    if (tool_call_) return Step::kFail;  // one, so that little is looked at twice
    tool_call_ = true;
    state_ = State::kOutside;
    return Step::kTake;
  }
  if (tag == kFunction) {
    name_.clear();
    state_ = State::kFunctionName;
    return Step::kTake;
  }
  const bool after = !text_since_;
  const bool ends_tool_call = after && tool_call_open_, ends_function = after && function_open_;
  if (ends_tool_call && tag == kToolCallEnd) {
    tool_call_open_ = false;
    state_ = State::kOutside;
    drop_ = true;
    return Step::kTake;
  }
  if (ends_function && tag == kFunctionEnd) {
    function_open_ = false;
    state_ = State::kOutside;
    drop_ = true;
    return Step::kTake;
  }
  const bool begins = kToolCall.starts_with(tag) || kFunction.starts_with(tag) ||
                      (ends_tool_call && kToolCallEnd.starts_with(tag)) ||
                      (ends_function && kFunctionEnd.starts_with(tag));
  return begins ? Step::kTake : Step::kFail;
}

ToolCallParser::Step ToolCallParser::fence(char c) {
  if (state_ == State::kFence) {
    if (c != '`') return Step::kFail;
    if (++ticks_ < 3) return Step::kTake;
    if (fence_open_ && !text_since_) {
      fence_open_ = false;
      state_ = State::kOutside;
      drop_ = true;
      return Step::kTake;
    }
    fence_word_ = 0;
    state_ = State::kFenceWord;
    return fence_ ? Step::kFail : Step::kTake;
  }
  if ((is_letter(c) || is_digit(c)) && ++fence_word_ <= kMaxFenceWord) return Step::kTake;
  fence_ = true;
  state_ = State::kOutside;
  return Step::kAgain;
}

ToolCallParser::Step ToolCallParser::list(char c) {
  switch (state_) {
    case State::kList:
      if (is_space(c)) return Step::kTake;
      if (c == '{' && list_calls_ == 0) {
        in_list_ = true;
        enter_object();
        return Step::kTake;
      }
      if (c == ']' && list_calls_ > 0) {
        state_ = State::kOutside;
        drop_ = true;
        return Step::kTake;
      }
      name_.clear();
      state_ = State::kListName;
      return Step::kAgain;
    case State::kListName:
      if (c == '(') {
        if (!known(name_)) return Step::kFail;
        arguments_ = "{";
        call_arguments_ = 0;
        state_ = State::kArgument;
        return Step::kTake;
      }
      name_ += c;
      return known_prefix(name_) ? Step::kTake : Step::kFail;
    case State::kArgumentName:
      if (is_letter(c) || is_digit(c) || c == '-' || c == '.') {
        key_ += c;
        return key_.size() <= kMaxArgumentName ? Step::kTake : Step::kFail;
      }
      state_ = State::kArgumentEquals;
      return Step::kAgain;
    case State::kArgumentEquals:
      if (is_space(c)) return Step::kTake;
      if (c != '=') return Step::kFail;
      literal_ = {};
      state_ = State::kArgumentValue;
      return Step::kTake;
    case State::kArgument:
      if (is_letter(c)) {
        key_.clear();
        state_ = State::kArgumentName;
        return Step::kAgain;
      }
      [[fallthrough]];
    case State::kAfterArgument:
      if (is_space(c)) return Step::kTake;
      if (c == ',' && state_ == State::kAfterArgument) {
        state_ = State::kArgument;
        return Step::kTake;
      }
      if (c != ')') return Step::kFail;
      arguments_ += '}';
      if (call_arguments_ == 0 && list_calls_ == 0) {
        if (calls_ == options_.max_calls) return Step::kFail;
        pending_ = true;
      } else {
        if (!begin_call()) return Step::kFail;
        end_call(/*whole=*/true);
      }
      ++list_calls_;
      state_ = State::kAfterCall;
      return Step::kTake;
    case State::kAfterCall:
      if (is_space(c)) return Step::kTake;
      if (c == ',') {
        if (pending_) {
          end_call(/*whole=*/true);
          return Step::kAgain;
        }
        state_ = State::kList;
        return Step::kTake;
      }
      if (c != ']') return Step::kFail;
      if (pending_) {
        state_ = State::kMaybeLink;
      } else {
        state_ = State::kOutside;
        drop_ = true;
      }
      return Step::kTake;
    default:  // kMaybeLink
      if (c == '(') return Step::kFail;
      end_call(/*whole=*/true);
      state_ = State::kOutside;
      return Step::kAgain;
  }
}

ToolCallParser::Step ToolCallParser::argument_value(char c) {
  const bool first = literal_.fresh();
  if (first && is_space(c)) return Step::kTake;
  if (first) {
    if (call_arguments_++ > 0) arguments_ += ", ";
    arguments_ += json_string(key_) + ": ";
  }
  return parameters(c, State::kAfterArgument);
}

// A byte of the arguments. The call begins with the first that is surely good.
ToolCallParser::Step ToolCallParser::parameters(char c, State next) {
  const size_t before = arguments_.size();
  const LiteralToJson::Step step = literal_.push(c, arguments_);
  if (step == LiteralToJson::Step::kBad) return Step::kFail;
  const bool may_begin = state_ != State::kParameters || has_name_;
  if (options_.stream_arguments && may_begin && arguments_.size() > before && !begin_call()) {
    return Step::kFail;
  }
  if (step != LiteralToJson::Step::kMore) state_ = next;
  return step == LiteralToJson::Step::kAfter ? Step::kAgain : Step::kTake;
}

void ToolCallParser::enter_object() {
  name_.clear();
  arguments_.clear();
  nested_ = has_name_ = has_arguments_ = is_function_ = done_ = false;
  state_ = State::kObject;
}

ToolCallParser::Step ToolCallParser::object(char c) {
  switch (state_) {
    case State::kObject:
      if (is_space(c)) return Step::kTake;
      if (c == '}') return close_object();
      if (c != '"' && c != '\'') return Step::kFail;
      quote_ = c;
      key_.clear();
      state_ = State::kKey;
      return Step::kTake;
    case State::kKey: {
      const bool ends = c == quote_;
      if (!ends) key_ += c;
      for (const std::string_view key : kKeys) {
        if (ends ? key == key_ : key.starts_with(key_)) {
          if (ends) state_ = State::kColon;
          return Step::kTake;
        }
      }
      return Step::kFail;
    }
    case State::kColon:
      if (is_space(c)) return Step::kTake;
      state_ = State::kMember;
      return c == ':' ? Step::kTake : Step::kFail;
    case State::kMember: {
      if (is_space(c)) return Step::kTake;
      const bool quote = c == '"' || c == '\'';
      if (key_ == "function" && c == '{' && !nested_) {
        nested_ = true;
        state_ = State::kObject;
        return Step::kTake;
      }
      if (key_ == "name" || key_ == "function") {
        if (!quote || has_name_) return Step::kFail;
        quote_ = c;
        state_ = State::kName;
        return Step::kTake;
      }
      literal_ = {};
      other_.clear();
      const bool arguments = key_ == "parameters" || key_ == "arguments";
      if (arguments && has_arguments_) return Step::kFail;
      state_ = arguments && c == '{' ? State::kParameters : State::kOtherValue;
      return Step::kAgain;
    }
    case State::kName:
      if (c != quote_) {
        name_ += c;
        return known_prefix(name_) ? Step::kTake : Step::kFail;
      }
      if (!known(name_)) return Step::kFail;
      has_name_ = true;
      if (has_arguments_) {
        if (!begin_call()) return Step::kFail;
        end_call(/*whole=*/true);
        done_ = true;
      }
      state_ = State::kAfterMember;
      return Step::kTake;
    case State::kParameters: {
      const Step step = parameters(c, State::kAfterMember);
      if (step != Step::kFail && state_ == State::kAfterMember) {
        has_arguments_ = true;
        if (has_name_) {
          if (!begin_call()) return Step::kFail;
          end_call(/*whole=*/true);
          done_ = true;
        }
      }
      return step;
    }
    case State::kOtherValue: {
      const LiteralToJson::Step step = literal_.push(c, other_);
      if (step == LiteralToJson::Step::kBad) return Step::kFail;
      if (step != LiteralToJson::Step::kMore) {
        if (!other_value()) return Step::kFail;
        state_ = State::kAfterMember;
      }
      return step == LiteralToJson::Step::kAfter ? Step::kAgain : Step::kTake;
    }
    case State::kAfterMember:
      if (is_space(c)) return Step::kTake;
      if (c == '}') return close_object();
      state_ = State::kObject;
      return c == ',' ? Step::kTake : Step::kFail;
    case State::kAfterObject:
      if (is_space(c)) return Step::kTake;
      if (c == ',') {
        state_ = State::kNextObject;
        return Step::kTake;
      }
      [[fallthrough]];
    default:  // kNextObject
      if (is_space(c)) return Step::kTake;
      if (c == '{' && state_ == State::kNextObject) {
        enter_object();
        return Step::kTake;
      }
      state_ = State::kOutside;
      drop_ = true;
      return c == ']' ? Step::kTake : Step::kFail;
  }
}

// A value that is neither a name nor an object of arguments; whether a call can have it.
bool ToolCallParser::other_value() {
  if (key_ == "type") {
    is_function_ = other_ == "\"function\"";
    return is_function_;
  }
  if (key_ == "id") return true;
  // The arguments, as nothing at all or as JSON in a string.
  std::string json;
  if (other_ == "null") {
    json = "{}";
  } else if (other_.front() == '"') {
    std::string inner = unquoted(other_);
    if (inner.empty()) inner = "{}";
    LiteralToJson literal;
    LiteralToJson::Step step = LiteralToJson::Step::kMore;
    for (const char c : inner) {
      if (step == LiteralToJson::Step::kLast && is_space(c)) continue;
      if (step != LiteralToJson::Step::kMore) return false;
      step = literal.push(c, json);
    }
    if (step != LiteralToJson::Step::kLast || json.front() != '{') return false;
  } else {
    return false;
  }
  arguments_ = json;
  has_arguments_ = true;
  if (has_name_) {
    if (!begin_call()) return false;
    end_call(/*whole=*/true);
    done_ = true;
  }
  return true;
}

ToolCallParser::Step ToolCallParser::close_object() {
  if (nested_) {
    nested_ = false;
    state_ = State::kAfterMember;
    drop_ = done_;
    return Step::kTake;
  }
  if (!done_) {
    // A name alone is a call only where nothing else can be meant.
    if (!has_name_ || !(is_function_ || tool_call_)) return Step::kFail;
    arguments_ = "{}";
    if (!begin_call()) return Step::kFail;
    end_call(/*whole=*/true);
  }
  drop_ = true;
  state_ = in_list_ ? State::kAfterObject : State::kOutside;
  return Step::kTake;
}

ToolCallParser::Step ToolCallParser::function(char c) {
  if (state_ == State::kFunctionName) {
    if (c == '>') {
      if (!known(name_)) return Step::kFail;
      arguments_.clear();
      literal_ = {};
      state_ = State::kFunctionBody;
      return Step::kTake;
    }
    name_ += c;
    return known_prefix(name_) ? Step::kTake : Step::kFail;
  }
  if (literal_.fresh()) {
    if (is_space(c)) return Step::kTake;
    if (c != '{') return Step::kFail;
  }
  const Step step = parameters(c, State::kOutside);
  if (step == Step::kTake && state_ == State::kOutside) {
    if (!begin_call()) return Step::kFail;
    end_call(/*whole=*/true);
    function_open_ = true;
  }
  return step;
}

// What was taken for a call is none. If it has begun already, it ends here, and the byte that broke
// it is text again; otherwise its first byte is text, and the others are looked at again.
void ToolCallParser::fail() {
  if (open_) {
    end_call(/*whole=*/false);
    begin_ = at_;
  } else if (begin_ < at_) {
    at_ = begin_;
    say_text(buffer_[at_]);
    begin_ = ++at_;
  }
  leave();
}

// Back to the outside, with nothing held.
void ToolCallParser::leave() {
  state_ = State::kOutside;
  drop_ = false;
  separator_ = fence_ = tool_call_ = pending_ = false;
}

void ToolCallParser::say_text(char c) {
  if (events_.empty() || events_.back().kind != ToolEvent::Kind::kText) {
    events_.push_back({ToolEvent::Kind::kText});
  }
  events_.back().text += c;
  text_since_ = true;
  fence_open_ = tool_call_open_ = function_open_ = false;
  if (!is_space(c)) {
    before_ = last_;
    last_ = c;
  }
}

// The call of name_ begins, if it has not. What stood before it to be its own is not text.
bool ToolCallParser::begin_call() {
  if (open_) return true;
  if (calls_ == options_.max_calls) return false;
  events_.push_back({ToolEvent::Kind::kCallBegin, calls_++, name_});
  open_ = drop_ = true;
  text_since_ = false;
  fence_open_ |= fence_;
  tool_call_open_ |= tool_call_;
  separator_ = fence_ = tool_call_ = false;
  last_ = before_ = 0;
  return true;
}

void ToolCallParser::end_call(bool whole) {
  begin_call();
  if (!arguments_.empty()) {
    events_.push_back({ToolEvent::Kind::kArguments, calls_ - 1, std::exchange(arguments_, {})});
  }
  events_.push_back({ToolEvent::Kind::kCallEnd, calls_ - 1, {}, whole});
  open_ = false;
  drop_ = true;
  pending_ = false;
}

void ToolCallParser::flush_arguments() {
  if (!open_ || arguments_.empty() || !literal_.settled()) return;
  events_.push_back({ToolEvent::Kind::kArguments, calls_ - 1, std::exchange(arguments_, {})});
}

bool ToolCallParser::known(std::string_view name) const {
  return std::binary_search(options_.names.begin(), options_.names.end(), name);
}

bool ToolCallParser::known_prefix(std::string_view prefix) const {
  const auto at = std::lower_bound(options_.names.begin(), options_.names.end(), prefix);
  return at != options_.names.end() && std::string_view(*at).starts_with(prefix);
}

}  // namespace drover
