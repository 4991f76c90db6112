#include "cli/settings.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "cli/option_tree.h"

namespace drover {
namespace {

constexpr const char* kHelp =
    "Take from this file what neither flags nor variables say; see drover(1)";

// --config names the file, and a file cannot name another.
constexpr std::string_view kConfig = "config";

CLI::Option* find_option(CLI::App& command, const std::string& name) {
  CLI::Option* option = command.get_option_no_throw("--" + name);
  const bool settable = option != nullptr && !setting_name(*option).empty() && name != kConfig;
  return settable ? option : nullptr;
}

// How many letters must change to make one word of the other.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

// "perhaps max-queue; ", or nothing where no name is near.
std::string perhaps(std::string_view word, const std::vector<std::string>& names) {
  if (word.size() > 64) return {};
  std::string_view best;
  size_t least = word.size() / 3 + 2;
  for (const std::string& name : names) {
    const size_t here = distance(word, name);
    if (here < least) {
      least = here;
      best = name;
    }
  }
  return best.empty() ? "" : fmt::format("perhaps {}; ", best);
}

std::vector<std::string> names_of(const CLI::App& command) {
  std::vector<std::string> out;
  for (const CLI::Option* option : command.get_options({})) {
    if (setting_name(*option).empty() || setting_name(*option) == kConfig) continue;
    out.insert(out.end(), option->get_lnames().begin(), option->get_lnames().end());
  }
  return out;
}

std::optional<bool> truth_of(std::string_view text) {
  const std::string word = CLI::detail::to_lower(std::string(text));
  for (const char* yes : {"1", "true", "on", "yes"}) {
    if (word == yes) return true;
  }
  for (const char* no : {"0", "false", "off", "no"}) {
    if (word == no) return false;
  }
  return std::nullopt;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  for (std::string& line : CLI::detail::split(text, '\n')) {
    if (!line.empty()) out.push_back(std::move(line));
  }
  return out;
}

}  // namespace

Settings::Settings(CLI::App& program) : program_(program) {
  for (CLI::App* command : program.get_subcommands({})) {
    // The value is read in fill(): an option of its own for each command, one meaning.
    command->add_option("--config", kHelp)->type_name("FILE");
  }
  // CLI11 runs the callbacks of the program's options once the command line is read whole, and
  // before those of the command's. This one runs always, with the file or without.
  file_of_program_ = program.add_option_function<std::string>(
      "--config",
      [this](const std::string&) {
        const auto chosen = program_.get_subcommands();
        if (!chosen.empty()) fill(*chosen.front());
      },
      kHelp);
  file_of_program_->type_name("FILE")->force_callback();
}

void Settings::fill(CLI::App& command) {
  // Help must be there when settings are wrong.
  if (command.get_help_ptr()->count() > 0 || program_.get_help_ptr()->count() > 0) return;
  give(of_variables(command));

  std::string path;
  const char* variable = std::getenv("DROVER_CONFIG");
  if (const CLI::Option* own = command.get_option("--config"); own->count() > 0) {
    path = own->results().back();
  } else if (!file_of_program_->results().empty() && !file_of_program_->results().back().empty()) {
    path = file_of_program_->results().back();
  } else if (variable != nullptr) {
    path = variable;
  }
  if (path.empty()) return;
  const SettingsFile file = read_settings(path);
  check_names(file);
  give(of_section(command, file, command.get_name()));
  give(of_section(command, file, ""));
}

// Takes from one source what stronger ones have left open. All is looked at before anything is
// given, so that two options of one source that exclude each other are still an error.
void Settings::give(const std::vector<Given>& all) {
  std::vector<const Given*> open;
  for (const Given& given : all) {
    const auto excluded = given.option->get_excludes();
    const bool decided = given.option->count() > 0 || sources_.contains(given.option) ||
                         std::any_of(excluded.begin(), excluded.end(),
                                     [](auto* other) { return other->count() > 0; });
    if (!decided) open.push_back(&given);
  }
  for (const Given* given : open) {
    const ErrorKind kind = given->from_file ? ErrorKind::kConfig : ErrorKind::kUsage;
    sources_[given->option] = given->source;
    if (is_flag(*given->option)) {
      const auto truth = given->values.size() == 1 ? truth_of(given->values.front()) : std::nullopt;
      if (!truth) {
        throw_error(kind, "{}: expected true or false, got {}", given->source,
                    printable(fmt::format("{}", fmt::join(given->values, ", "))));
      }
      // A flag that is not given is one that nobody has given.
      if (!*truth) continue;
      given->option->add_result("true");
    } else {
      for (const std::string& value : given->values) given->option->add_result(value);
    }
    try {
      given->option->run_callback();
    } catch (const CLI::ParseError& error) {
      throw_error(kind, "{}: {}", given->source, error.what());
    }
  }
}

std::vector<Settings::Given> Settings::of_variables(CLI::App& command) const {
  std::vector<Given> out;
  for (CLI::Option* option : command.get_options({})) {
    if (setting_name(*option).empty() || setting_name(*option) == kConfig) continue;
    const std::string name = variable_of(*option);
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') continue;
    const bool several = option->get_items_expected_max() > 1;
    out.push_back({option, several ? lines_of(value) : std::vector<std::string>{value}, name,
                   /*from_file=*/false});
  }
  return out;
}

std::vector<Settings::Given> Settings::of_section(CLI::App& command, const SettingsFile& file,
                                                  std::string_view section) const {
  std::vector<Given> out;
  for (const Setting& setting : file.settings) {
    if (setting.section != section) continue;
    CLI::Option* option = find_option(command, setting.key);
    if (option == nullptr) continue;  // of another command
    out.push_back({option, setting.values,
                   fmt::format("{}:{}: {}", file.name, setting.line, setting.key),
                   /*from_file=*/true});
  }
  return out;
}

// A name that nobody knows is a mistake wherever it stands, of the command that runs or not.
void Settings::check_names(const SettingsFile& file) const {
  std::vector<std::string> commands;
  for (const CLI::App* command : commands_of(program_)) commands.push_back(command->get_name());
  for (const auto& section : file.sections) {
    if (std::find(commands.begin(), commands.end(), section.name) != commands.end()) continue;
    throw Error(ErrorKind::kConfig,
                fmt::format("{}:{}: expected a command in [ ], got {}", file.name, section.line,
                            printable(section.name)),
                perhaps(section.name, commands) + "`drover --help` names all");
  }
  for (const Setting& setting : file.settings) {
    std::vector<std::string> names;
    for (CLI::App* command : program_.get_subcommands({})) {
      if (!setting.section.empty() && command->get_name() != setting.section) continue;
      const auto more = names_of(*command);
      names.insert(names.end(), more.begin(), more.end());
    }
    if (std::find(names.begin(), names.end(), setting.key) != names.end()) continue;
    const std::string where = setting.section.empty() ? "any command" : setting.section;
    throw Error(ErrorKind::kConfig,
                fmt::format("{}:{}: {}: expected a flag of {} without its dashes", file.name,
                            setting.line, printable(setting.key), where),
                fmt::format("{}`drover {} --help` names all", perhaps(setting.key, names),
                            setting.section.empty() ? "COMMAND" : setting.section));
  }
}

std::string Settings::source_of(std::string_view message) const {
  std::string name(message.substr(0, message.find(':')));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ' ' || c == '_'; }, '-');
  for (const auto& [option, source] : sources_) {
    if (option->check_lname(name)) return source;
  }
  return {};
}

}  // namespace drover
