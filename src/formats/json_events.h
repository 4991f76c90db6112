// Runs Boost.JSON's event parser over a whole text and hands the events on in a simpler form. For
// the readers of this folder: a document is checked, and refused, before it takes any memory.
#pragma once

#include <boost/json/basic_parser_impl.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "base/error.h"

namespace drover {

// A value without parts. Text is valid during the call only.
using JsonScalar = std::variant<std::nullptr_t, bool, int64_t, uint64_t, double, std::string_view>;

// Boost's handler: joins the parts in which long strings arrive. Events has
//   void begin(bool object);  void end();    an object or array
//   void key(std::string_view);              of the value that follows
//   void scalar(const JsonScalar&);          a number above INT64_MAX comes as uint64_t
//   static constexpr size_t kMaxKeyBytes, kMaxTextBytes;
// and refuses what it does not like by throwing an Error.
template <typename Events>
class JsonEventHandler {
 public:
  using Code = boost::json::error_code;
  using View = boost::json::string_view;
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = Events::kMaxKeyBytes;
  static constexpr std::size_t max_string_size = Events::kMaxTextBytes;

  explicit JsonEventHandler(Events& events) : events_(events) {}

  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_object_begin(Code&) { return events_.begin(/*object=*/true), true; }
  bool on_object_end(std::size_t, Code&) { return events_.end(), true; }
  bool on_array_begin(Code&) { return events_.begin(/*object=*/false), true; }
  bool on_array_end(std::size_t, Code&) { return events_.end(), true; }
  bool on_key_part(View part, std::size_t, Code&) { return add(part); }
  bool on_key(View part, std::size_t, Code&) {
    add(part);
    events_.key(text_);
    text_.clear();
    return true;
  }
  bool on_string_part(View part, std::size_t, Code&) { return add(part); }
  bool on_string(View part, std::size_t, Code&) {
    add(part);
    events_.scalar(std::string_view(text_));
    text_.clear();
    return true;
  }
  bool on_number_part(View, Code&) { return true; }
  bool on_int64(int64_t number, View, Code&) { return events_.scalar(number), true; }
  bool on_uint64(uint64_t number, View, Code&) { return events_.scalar(number), true; }
  bool on_double(double number, View, Code&) { return events_.scalar(number), true; }
  bool on_bool(bool flag, Code&) { return events_.scalar(flag), true; }
  bool on_null(Code&) { return events_.scalar(nullptr), true; }
  bool on_comment_part(View, Code&) { return true; }
  bool on_comment(View, Code&) { return true; }

 private:
  bool add(View part) { return text_.append(part.data(), part.size()), true; }

  Events& events_;
  std::string text_;
};

// One JSON document and white space around it, nothing else. Throws kBadData with the byte offset,
// kLimit when nested deeper than `depth`, and what `events` throws.
template <typename Events>
void parse_json_events(std::string_view text, const std::string& source, size_t depth,
                       Events& events) {
  boost::json::parse_options options;
  options.max_depth = depth;
  boost::json::basic_parser<JsonEventHandler<Events>> parser(options, events);
  boost::json::error_code code;
  const size_t parsed = parser.write_some(/*more=*/false, text.data(), text.size(), code);
  if (code == boost::json::error::too_deep) {
    throw_error(ErrorKind::kLimit, "{}: at byte {}: expected JSON nested at most {} deep, got more",
                source, parsed, depth);
  }
  if (code == boost::json::error::key_too_large || code == boost::json::error::string_too_large) {
    throw_error(ErrorKind::kLimit,
                "{}: at byte {}: expected keys up to {} and strings up to {} bytes, got more",
                source, parsed, Events::kMaxKeyBytes, Events::kMaxTextBytes);
  }
  if (code) {
    throw_error(ErrorKind::kBadData, "{}: at byte {}: expected JSON, got a fault: {}", source,
                parsed, code.message());
  }
  if (text.find_first_not_of(" \t\r\n", parsed) != std::string_view::npos) {
    throw_error(ErrorKind::kBadData, "{}: at byte {}: expected the end of the JSON text, got more",
                source, parsed);
  }
}

}  // namespace drover
