#include "cli/option_tree.h"

#include <algorithm>

namespace drover {
namespace {

constexpr size_t kHelpWidth = 92;  // of the right column

// Behind the name of the value, CLI11 puts what its validators say: "MODE:{exact,bounded}".
std::string_view validators_of(std::string_view type) {
  const size_t colon = type.find(':');
  return colon == std::string_view::npos ? std::string_view() : type.substr(colon + 1);
}

}  // namespace

std::vector<const CLI::App*> commands_of(const CLI::App& program, bool hidden_too) {
  return program.get_subcommands(
      [&](const CLI::App* command) { return hidden_too || !command->get_group().empty(); });
}

std::string setting_name(const CLI::Option& option) {
  const auto& names = option.get_lnames();
  if (names.empty() || names.front() == "help" || names.front() == "version") return {};
  return names.front();
}

std::string variable_of(const CLI::Option& option) {
  std::string name = setting_name(option);
  if (name.empty()) return {};
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return "DROVER_" + name;
}

bool is_flag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

std::string value_name(const CLI::Option& option) {
  if (is_flag(option)) return {};
  const std::string type = option.get_type_name();
  return type.substr(0, type.find(':'));
}

std::vector<std::string> choices_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::string_view said = validators_of(type);
  if (!said.starts_with('{') || !said.ends_with('}')) return {};
  return CLI::detail::split(std::string(said.substr(1, said.size() - 2)), ',');
}

std::string range_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::string_view said = validators_of(type);
  const size_t open = said.find(" in ["), dash = said.rfind(" - ");
  if (open == std::string_view::npos || dash == std::string_view::npos) return {};
  return std::string(said.substr(open + 5, dash - open - 5)) + " to " +
         std::string(said.substr(dash + 3, said.size() - dash - 4));
}

std::vector<std::string> flags_of(const CLI::Option& option) {
  std::vector<std::string> out;
  for (const std::string& name : option.get_snames()) out.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) out.push_back("--" + name);
  return out;
}

std::string on_one_line(std::string_view text) {
  std::string out(text);
  std::replace(out.begin(), out.end(), '\n', ' ');
  return out;
}

std::string wrapped(std::string_view text, size_t width) {
  std::string out;
  size_t column = 0;
  const std::string line = on_one_line(text);
  for (size_t at = 0; at < line.size();) {
    const size_t end = std::min(line.find(' ', at), line.size());
    if (column > 0) {
      const bool fits = column + 1 + end - at <= width;
      out += fits ? ' ' : '\n';
      column = fits ? column + 1 : 0;
    }
    out.append(line, at, end - at);
    column += end - at;
    at = end + 1;
  }
  return out;
}

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  if (is_flag(*option)) return {};
  const std::string start = option->get_default_str();
  return " " + value_name(*option) + (start.empty() ? "" : "=" + start);
}

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  std::string text = option->get_description();
  if (const std::string range = range_of(*option); !range.empty()) text += " (" + range + ")";
  const std::string variable = variable_of(*option);
  if (!variable.empty()) text += " [$" + variable + "]";
  return wrapped(text, kHelpWidth);
}

}  // namespace drover
