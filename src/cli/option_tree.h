// What the tree of commands and options says of itself. Help, settings, manual pages and completion
// are all made from it, so that none of them can forget an option or call it otherwise.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// The commands that people are told of, in order; with the hidden ones, all.
std::vector<const CLI::App*> commands_of(const CLI::App& program, bool hidden_too = false);

// An option's name in files, and with DROVER_ before it in variables: its first long one. Empty for
// --help and --version, and for what has a place on the command line and no name.
std::string setting_name(const CLI::Option& option);
// "DROVER_MAX_QUEUE" of --max-queue.
std::string variable_of(const CLI::Option& option);

// Whether an option stands alone, without a value.
bool is_flag(const CLI::Option& option);
// "FILE"; empty for flags.
std::string value_name(const CLI::Option& option);
// What a value may be where only a few are; empty where any.
std::vector<std::string> choices_of(const CLI::Option& option);
// "1 to 64" where the value is a number between two; else empty.
std::string range_of(const CLI::Option& option);
// "-t", "--threads": how it is called, in order; of what has a place only, none.
std::vector<std::string> flags_of(const CLI::Option& option);

// A sentence on one line, and the same broken into lines of at most `width` characters.
std::string on_one_line(std::string_view text);
std::string wrapped(std::string_view text, size_t width);

// Help that says of a flag its value and default, what it is for, and the variable that sets it
// too.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override;
  std::string make_option_desc(const CLI::Option* option) const override;
};

}  // namespace drover
