#include "cli/settings_file.h"

#include <algorithm>

#include "base/error.h"
#include "base/mapped_file.h"

namespace drover {
namespace {

constexpr size_t kLargest = 1 << 16;

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

// -12, 0.5, 1e-3
bool is_number(std::string_view text) {
  size_t at = 0;
  const auto digits = [&] {
    const size_t start = at;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
    return at > start;
  };
  const auto sign = [&] { at += at < text.size() && (text[at] == '-' || text[at] == '+'); };
  sign();
  if (!digits()) return false;
  if (at < text.size() && text[at] == '.') {
    ++at;
    if (!digits()) return false;
  }
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    sign();
    if (!digits()) return false;
  }
  return at == text.size();
}

class Reader {
 public:
  Reader(std::string_view text, std::string name) : text_(text) { out_.name = std::move(name); }

  SettingsFile read() {
    for (skip_lines(); !done(); skip_lines()) {
      if (peek() == '[') {
        read_section();
      } else {
        read_setting();
      }
      skip_spaces();
      if (!done() && peek() != '\n') fail("the end of the line");
    }
    return std::move(out_);
  }

 private:
  bool done() const { return at_ == text_.size(); }
  char peek() const { return done() ? '\0' : text_[at_]; }
  char take() {
    line_ += peek() == '\n';
    return text_[at_++];
  }

  // Up to the end of the line, comments too.
  void skip_spaces() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\r') take();
    if (peek() == '#') {
      while (!done() && peek() != '\n') take();
    }
  }
  void skip_lines() {
    for (skip_spaces(); !done() && peek() == '\n'; skip_spaces()) take();
  }

  [[noreturn]] void fail(std::string_view expected, std::string hint = {}) const {
    const size_t end = std::min(text_.find('\n', at_), text_.size());
    const std::string_view got = text_.substr(at_, end - at_);
    throw Error(ErrorKind::kConfig,
                fmt::format("{}:{}: expected {}, got {}", out_.name, line_, expected,
                            got.empty() ? "none" : printable(got, 40)),
                std::move(hint));
  }

  std::string_view word() {
    const size_t start = at_;
    while (!done() && is_word(peek())) take();
    return text_.substr(start, at_ - start);
  }

  void read_section() {
    take();
    skip_spaces();
    const int line = line_;
    const std::string name(word());
    skip_spaces();
    if (name.empty() || peek() != ']') fail("[COMMAND]");
    take();
    for (const auto& section : out_.sections) {
      if (section.name == name) {
        throw_error(ErrorKind::kConfig, "{}:{}: section [{}] is there already, in line {}",
                    out_.name, line, name, section.line);
      }
    }
    out_.sections.push_back({name, line});
  }

  void read_setting() {
    Setting setting;
    setting.line = line_;
    if (!out_.sections.empty()) setting.section = out_.sections.back().name;
    setting.key = word();
    if (setting.key.empty()) fail("KEY = VALUE or [COMMAND]");
    skip_spaces();
    if (peek() != '=') fail("= after " + setting.key);
    take();
    skip_spaces();
    if (peek() == '[') {
      read_list(setting.values);
    } else {
      setting.values.push_back(read_value());
    }
    for (const Setting& other : out_.settings) {
      if (other.section == setting.section && other.key == setting.key) {
        throw_error(ErrorKind::kConfig, "{}:{}: {} is there already, in line {}", out_.name,
                    setting.line, setting.key, other.line);
      }
    }
    out_.settings.push_back(std::move(setting));
  }

  void read_list(std::vector<std::string>& values) {
    take();
    for (skip_lines(); peek() != ']'; skip_lines()) {
      if (done()) fail("] at the end of the list");
      values.push_back(read_value());
      skip_lines();
      if (peek() == ',') {
        take();
      } else if (peek() != ']') {
        fail(", or ] after an item of the list");
      }
    }
    take();
  }

  std::string read_value() {
    if (peek() == '"') return read_string();
    if (peek() == '\'') {
      take();
      const size_t end = text_.find_first_of("'\n", at_);
      if (end == std::string_view::npos || text_[end] == '\n') fail("a ' at the string's end");
      const std::string_view out = text_.substr(at_, end - at_);
      at_ = end + 1;
      return checked(out);
    }
    const size_t start = at_;
    while (!done() && (is_word(peek()) || peek() == '.' || peek() == '+')) take();
    const std::string_view bare = text_.substr(start, at_ - start);
    if (bare == "true" || bare == "false" || is_number(bare)) return std::string(bare);
    at_ = start;
    fail("a string in quotes, a number, true, false or a list", "text stands in quotes: \"...\"");
  }

  std::string read_string() {
    take();
    std::string out;
    for (;;) {
      if (done() || peek() == '\n') fail("a \" at the string's end");
      const char c = take();
      if (c == '"') return checked(out);
      out += c == '\\' ? escaped() : c;
    }
  }
  char escaped() {
    constexpr std::string_view kNames = "\"\\nt", kMeanings = "\"\\\n\t";
    const size_t which = done() ? std::string_view::npos : kNames.find(peek());
    if (which == std::string_view::npos) {
      fail("\\\", \\\\, \\n or \\t", "in '...' a backslash is a backslash");
    }
    take();
    return kMeanings[which];
  }
  std::string checked(std::string_view value) const {
    if (value.find('\0') != std::string_view::npos) fail("text without a zero byte");
    return std::string(value);
  }

  std::string_view text_;
  size_t at_ = 0;
  int line_ = 1;
  SettingsFile out_;
};

}  // namespace

SettingsFile parse_settings(std::string_view text, std::string name) {
  return Reader(text, std::move(name)).read();
}

SettingsFile read_settings(const std::string& path) {
  return parse_settings(read_file(path, kLargest), printable(path, 300));
}

}  // namespace drover
