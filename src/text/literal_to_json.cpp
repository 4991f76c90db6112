#include "text/literal_to_json.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "text/python_json.h"
#include "text/utf8.h"

namespace drover {
namespace {

using Step = LiteralToJson::Step;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// Takes decimal digits and single underscores between them off `text`; whether there were any.
bool take_digits(std::string_view& text, std::string& out) {
  const size_t before = out.size();
  while (!text.empty()) {
    const bool joins =
        text[0] == '_' && out.size() > before && text.size() > 1 && is_digit(text[1]);
    if (!is_digit(text[0]) && !joins) break;
    if (!joins) out += text[0];
    text.remove_prefix(1);
  }
  return out.size() > before;
}

}  // namespace

Step LiteralToJson::push(char c, std::string& out) {
  for (;;) {
    switch (state_) {
      case State::kValue: {
        if (is_space(c)) return Step::kMore;
        const char closes = frames_.empty() ? 0 : frames_.back().open;
        if ((c == ']' && closes == '[') || (c == ')' && closes == '(')) return close(out);
        return begin(c, /*key=*/false, out);
      }
      case State::kKey:
        if (is_space(c)) return Step::kMore;
        if (c == '}') return close(out);
        return begin(c, /*key=*/true, out);
      case State::kAfterKey:
        if (is_space(c)) return Step::kMore;
        if (c != ':') return Step::kBad;
        out += ": ";
        state_ = State::kValue;
        return Step::kMore;
      case State::kAfterValue: {
        if (is_space(c)) return Step::kMore;
        Frame& frame = frames_.back();
        if (c == ',') {
          if (!frame.list && frame.open == '(') {
            out.insert(frame.at, "[");
            frame.list = true;
            --unsettled_;
          }
          state_ = frame.open == '{' ? State::kKey : State::kValue;
          return Step::kMore;
        }
        const char closing = frame.open == '{' ? '}' : frame.open == '[' ? ']' : ')';
        return c == closing ? close(out) : Step::kBad;
      }
      case State::kOpenQuote:
        state_ = c == quote_ ? State::kSecondQuote : State::kString;
        if (c == quote_) return Step::kMore;
        break;
      case State::kSecondQuote: {
        if (c == quote_) {
          triple_ = true;
          state_ = State::kString;
          return Step::kMore;
        }
        out += '"';
        const Step step = end(/*with_byte=*/false);
        if (step != Step::kMore) return step;
        break;
      }
      case State::kNumber: {
        const bool sign = (c == '+' || c == '-') && (word_.back() == 'e' || word_.back() == 'E');
        if (is_digit(c) || is_letter(c) || c == '.' || sign) {
          if (word_.size() == kMaxNumber) return Step::kBad;
          word_ += c;
          return Step::kMore;
        }
        if (!number(out)) return Step::kBad;
        const Step step = end(/*with_byte=*/false);
        if (step != Step::kMore) return step;
        break;
      }
      case State::kWord: {
        if (is_letter(c) || is_digit(c)) {
          if (word_.size() == 8) return Step::kBad;
          word_ += c;
          return Step::kMore;
        }
        if (c == '"' || c == '\'') {
          raw_ = word_ == "r" || word_ == "R";
          if (!raw_ && word_ != "u" && word_ != "U") return Step::kBad;
          out += '"';
          quote_ = c;
          state_ = State::kOpenQuote;
          return Step::kMore;
        }
        if (!word(out)) return Step::kBad;
        const Step step = end(/*with_byte=*/false);
        if (step != Step::kMore) return step;
        break;
      }
      case State::kHex:
        if (is_hex(c)) {
          word_ += c;
          if (word_.size() < digits_) return Step::kMore;
          uint32_t code = 0;
          std::from_chars(word_.data(), word_.data() + word_.size(), code, 16);
          put_code(code, out);
          state_ = State::kString;
          return Step::kMore;
        }
        // No escape after all, as in "C:\users".
        put('\\', out);
        put(escape_, out);
        for (const char digit : word_) put(digit, out);
        state_ = State::kString;
        break;
      case State::kOctal:
        if (c >= '0' && c <= '7' && word_.size() < 3) {
          word_ += c;
          return Step::kMore;
        }
        uint32_t code;
        std::from_chars(word_.data(), word_.data() + word_.size(), code, 8);
        put_code(code, out);
        state_ = State::kString;
        break;
      case State::kString:
      case State::kEscape:
      case State::kRawEscape:
        return string_byte(c, out);
    }
  }
}

Step LiteralToJson::begin(char c, bool key, std::string& out) {
  if (!frames_.empty()) {
    const Frame& frame = frames_.back();
    if (frame.count > 0 && (key || frame.open != '{')) out += ", ";
  }
  key_ = key;
  if (c == '"' || c == '\'') {
    out += '"';
    quote_ = c;
    triple_ = raw_ = false;
    quotes_ = 0;
    state_ = State::kOpenQuote;
    return Step::kMore;
  }
  if (is_digit(c) || c == '-' || c == '+' || c == '.') {
    word_ = c;
    state_ = State::kNumber;
    return Step::kMore;
  }
  if (is_letter(c)) {
    word_ = c;
    triple_ = raw_ = false;
    quotes_ = 0;
    state_ = State::kWord;
    return Step::kMore;
  }
  if (key || (c != '{' && c != '[' && c != '(') || frames_.size() == kMaxDepth) return Step::kBad;
  if (c == '(') {
    frames_.push_back({c, /*list=*/false, 0, out.size()});
    ++unsettled_;
  } else {
    frames_.push_back({c, /*list=*/true});
    out += c;
  }
  state_ = c == '{' ? State::kKey : State::kValue;
  return Step::kMore;
}

// A string, number, word or container is complete, with the current byte or before it.
Step LiteralToJson::end(bool with_byte) {
  if (key_) {
    key_ = false;
    state_ = State::kAfterKey;
    return Step::kMore;
  }
  state_ = State::kAfterValue;
  if (frames_.empty()) return with_byte ? Step::kLast : Step::kAfter;
  ++frames_.back().count;
  return Step::kMore;
}

Step LiteralToJson::close(std::string& out) {
  Frame& frame = frames_.back();
  if (frame.open == '{') {
    out += '}';
  } else if (frame.list) {
    out += ']';
  } else {
    if (frame.count == 0) out += "[]";
    --unsettled_;
  }
  frames_.pop_back();
  key_ = false;
  return end(/*with_byte=*/true);
}

Step LiteralToJson::string_byte(char c, std::string& out) {
  if (state_ == State::kRawEscape) {
    put(c, out);
    state_ = State::kString;
    return Step::kMore;
  }
  if (state_ == State::kEscape) {
    state_ = State::kString;
    static constexpr std::string_view kNames = "ntrbfav", kCodes = "\n\t\r\b\f\a\v";
    if (const size_t at = kNames.find(c); at != std::string_view::npos) {
      put(kCodes[at], out);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      escape_ = c;
      digits_ = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      word_.clear();
      state_ = State::kHex;
    } else if (c >= '0' && c <= '7') {
      word_ = c;
      state_ = State::kOctal;
    } else if (c == '"' || c == '\'' || c == '\\' || c == '/') {
      put(c, out);
    } else if (c != '\n') {  // a line break that is escaped is none
      put('\\', out);        // no escape of either language, as in a pattern "\d"
      put(c, out);
    }
    return Step::kMore;
  }
  if (c == quote_) {
    if (triple_ && ++quotes_ < 3) return Step::kMore;
    quotes_ = 0;
    put_lone_surrogate(out);
    out += '"';
    return end(/*with_byte=*/true);
  }
  for (; quotes_ > 0; --quotes_) put(quote_, out);
  if (c == '\\') {
    if (raw_) put(c, out);
    state_ = raw_ ? State::kRawEscape : State::kEscape;
  } else {
    put(c, out);
  }
  return Step::kMore;
}

void LiteralToJson::put(char c, std::string& out) {
  put_lone_surrogate(out);
  if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20) {
    const std::string quoted = json_string(std::string_view(&c, 1));
    out.append(quoted, 1, quoted.size() - 2);
  } else {
    out += c;
  }
}

void LiteralToJson::put_code(uint32_t code, std::string& out) {
  const bool first = code >= 0xD800 && code < 0xDC00, second = code >= 0xDC00 && code < 0xE000;
  if (high_ != 0 && second) {
    append_utf8(out, 0x10000 + ((high_ - 0xD800) << 10) + (code - 0xDC00));
    high_ = 0;
    return;
  }
  put_lone_surrogate(out);
  if (first) {
    high_ = code;
  } else if (code < 0x80) {
    put(static_cast<char>(code), out);
  } else {
    append_utf8(out, second || code > 0x10FFFF ? kReplacement : code);
  }
}

// A first surrogate that no second one follows is no character.
void LiteralToJson::put_lone_surrogate(std::string& out) {
  if (high_ != 0) out += kReplacementUtf8;
  high_ = 0;
}

// Appends the number in word_ as JSON.
bool LiteralToJson::number(std::string& out) const {
  std::string_view text = word_;
  std::string json;
  if (text[0] == '-' || text[0] == '+') {
    if (text[0] == '-') json += '-';
    text.remove_prefix(1);
  }
  if (text.size() > 2 && text[0] == '0' && is_letter(text[1])) {
    const int base = text[1] == 'x' || text[1] == 'X'   ? 16
                     : text[1] == 'o' || text[1] == 'O' ? 8
                     : text[1] == 'b' || text[1] == 'B' ? 2
                                                        : 0;
    uint64_t value = 0;
    if (base != 0) {
      const auto read = std::from_chars(text.data() + 2, text.data() + text.size(), value, base);
      if (read.ec != std::errc() || read.ptr != text.data() + text.size()) return false;
      json += std::to_string(value);
      text = {};
    }
  }
  if (!text.empty()) {
    std::string whole, fraction, exponent;
    const bool has_whole = take_digits(text, whole);
    whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size()));
    json += whole.empty() ? "0" : whole;
    if (!text.empty() && text[0] == '.') {
      text.remove_prefix(1);
      const bool has_fraction = take_digits(text, fraction);
      if (!has_whole && !has_fraction) return false;
      json += '.' + (has_fraction ? fraction : "0");
    } else if (!has_whole) {
      return false;
    }
    if (!text.empty() && (text[0] == 'e' || text[0] == 'E')) {
      json += 'e';
      text.remove_prefix(1);
      if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
        json += text[0];
        text.remove_prefix(1);
      }
      if (!take_digits(text, exponent)) return false;
      json += exponent;
    }
    if (!text.empty()) return false;
  }
  out += key_ ? '"' + json + '"' : json;
  return true;
}

// Appends the word in word_ as JSON.
bool LiteralToJson::word(std::string& out) const {
  std::string_view json;
  if (word_ == "true" || word_ == "True") json = "true";
  if (word_ == "false" || word_ == "False") json = "false";
  if (word_ == "null" || word_ == "None") json = "null";
  if (json.empty()) return false;
  if (key_) out += '"';
  out += json;
  if (key_) out += '"';
  return true;
}

}  // namespace drover
