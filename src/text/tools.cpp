#include "text/tools.h"

#include <algorithm>
#include <unordered_set>

#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr size_t kMaxName = 128;
constexpr size_t kMaxArgumentsDepth = 64;

const json::value* member(const json::value& value, std::string_view key) {
  const json::object* object = value.if_object();
  return object ? object->if_contains(key) : nullptr;
}

std::string name_of(const json::value* value, std::string_view where) {
  const json::string* name = value ? value->if_string() : nullptr;
  if (!name) throw_error(ErrorKind::kUsage, "{}: expected a string \"name\", got none", where);
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_.:/-").find(c) != std::string_view::npos;
  };
  if (name->empty() || name->size() > kMaxName ||
      !std::all_of(name->begin(), name->end(), allowed)) {
    throw_error(
        ErrorKind::kUsage,
        "{}: expected a name of 1 to {} of the characters A-Z a-z 0-9 _ . : / -, got \"{}\"", where,
        kMaxName, printable(*name));
  }
  return std::string(*name);
}

}  // namespace

Tools read_tools(const json::value& tools, const json::value& choice) {
  Tools out;
  if (!tools.is_null() && !tools.is_array()) {
    throw_error(ErrorKind::kUsage, "tools: expected a list");
  }
  if (const json::array* list = tools.if_array()) {
    std::unordered_set<std::string> known;
    for (size_t i = 0; i < list->size(); ++i) {
      const std::string where = fmt::format("tools[{}]", i);
      const json::value& tool = (*list)[i];
      const json::value* type = member(tool, "type");
      if (!type || !type->is_string() || type->get_string() != "function") {
        throw_error(ErrorKind::kUsage, "{}: expected \"type\": \"function\"", where);
      }
      const json::value* function = member(tool, "function");
      if (!function || !function->is_object()) {
        throw_error(ErrorKind::kUsage, "{}: expected an object \"function\"", where);
      }
      std::string name = name_of(member(*function, "name"), where + ".function");
      if (!known.insert(name).second) {
        throw_error(ErrorKind::kUsage, "{}: \"{}\" is there twice", where, name);
      }
      out.names.push_back(std::move(name));
      out.definitions.push_back(tool);
    }
  }
  if (choice.is_null()) return out;
  if (const json::string* word = choice.if_string()) {
    if (*word == "none") return {};
    if (*word == "auto") return out;
    if (*word != "required" && *word != "any") {
      throw_error(ErrorKind::kUsage,
                  "tool_choice: expected auto, none, required or a function, got \"{}\"",
                  printable(*word));
    }
    if (out.names.empty()) {
      throw_error(ErrorKind::kUsage, "tool_choice: \"{}\" needs tools, got none", printable(*word));
    }
    out.required = true;
    return out;
  }
  const json::value* type = member(choice, "type");
  if (!type || !type->is_string() || type->get_string() != "function") {
    throw_error(ErrorKind::kUsage,
                "tool_choice: expected auto, none, required or {{\"type\": \"function\", ...}}");
  }
  const json::value* function = member(choice, "function");
  const std::string name = name_of(member(function ? *function : choice, "name"), "tool_choice");
  const auto at = std::find(out.names.begin(), out.names.end(), name);
  if (at == out.names.end()) {
    throw_error(ErrorKind::kUsage, "tool_choice: expected one of the tools, got \"{}\"", name);
  }
  return {{out.definitions[static_cast<size_t>(at - out.names.begin())]}, {name}, true};
}

json::value read_tool_arguments(std::string_view text) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) return json::object();
  json::error_code error;
  json::parse_options options;
  options.max_depth = kMaxArgumentsDepth;
  json::value value = json::parse(text, error, {}, options);
  if (error) return json::string(text);
  return value;
}

}  // namespace drover
