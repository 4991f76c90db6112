#include "text/python_json.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>
#include <cmath>

namespace drover {
namespace {

namespace json = boost::json;

// repr() of a float: the shortest digits that read back the same, with an exponent below 1e-4 and
// from 1e16 on.
std::string float_repr(double value) {
  if (!std::isfinite(value))
    return std::isnan(value) ? "NaN" : value < 0 ? "-Infinity" : "Infinity";
  char buffer[64];
  const double size = std::fabs(value);
  const bool scientific = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string out(buffer, end.ptr);
  if (!scientific && out.find('.') == std::string::npos) out += ".0";
  return out;
}

struct Words {
  std::string_view yes, no, nothing;
};
constexpr Words kJsonWords{"true", "false", "null"}, kPythonWords{"True", "False", "None"};

void write(const json::value& value, const Words& words, int indent, int depth, std::string& out) {
  const auto line = [&](int levels) {
    if (indent > 0) out += "\n" + std::string(static_cast<size_t>(indent * levels), ' ');
  };
  const char* comma = indent > 0 ? "," : ", ";
  switch (value.kind()) {
    case json::kind::object: {
      const char* between = "";
      out += '{';
      for (const auto& [key, member] : value.get_object()) {
        out += between;
        between = comma;
        line(depth + 1);
        out += json_string(key) + ": ";
        write(member, words, indent, depth + 1, out);
      }
      if (!value.get_object().empty()) line(depth);
      out += '}';
      break;
    }
    case json::kind::array: {
      const char* between = "";
      out += '[';
      for (const auto& element : value.get_array()) {
        out += between;
        between = comma;
        line(depth + 1);
        write(element, words, indent, depth + 1, out);
      }
      if (!value.get_array().empty()) line(depth);
      out += ']';
      break;
    }
    case json::kind::string:
      out += json_string(value.get_string());
      break;
    case json::kind::int64:
      out += std::to_string(value.get_int64());
      break;
    case json::kind::uint64:
      out += std::to_string(value.get_uint64());
      break;
    case json::kind::double_:
      out += float_repr(value.get_double());
      break;
    case json::kind::bool_:
      out += value.get_bool() ? words.yes : words.no;
      break;
    case json::kind::null:
      out += words.nothing;
      break;
  }
}

}  // namespace

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

std::string python_json(const json::value& value, int indent) {
  std::string out;
  write(value, kJsonWords, indent, 0, out);
  return out;
}

std::string python_literal(const json::value& value) {
  std::string out;
  write(value, kPythonWords, 0, 0, out);
  return out;
}

}  // namespace drover
