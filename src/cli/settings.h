// What the command line leaves open is taken from variables (DROVER_MAX_QUEUE for --max-queue), and
// what they leave open from a file (--config, $DROVER_CONFIG), in it from the command's own section
// before what stands above all sections. This holds for every option of every command.
//
//   Settings settings(program);   // once all commands are there
//   program.parse(argc, argv);    // the settings are in place before any command looks at them
//
// A flag is given by 1, true, on or yes. Several values of an option come in a variable with commas
// between where the option has them so, else one on each line. What one source says takes back what
// weaker ones say of options that exclude it.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli/settings_file.h"

namespace drover {

class Settings {
 public:
  // Adds --config to the program and to each command. `program` must outlive the settings, and they
  // its parsing, which throws kUsage that names a variable, or kConfig that names file, line and
  // key, and what reading the file throws.
  explicit Settings(CLI::App& program);
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;

  // Where a setting comes from that a message of a command is about ("threads: expected ...");
  // empty if from the command line, or if it is about none.
  std::string source_of(std::string_view message) const;

 private:
  struct Given {
    CLI::Option* option;
    std::vector<std::string> values;
    std::string source;
    bool from_file;
  };

  void fill(CLI::App& command);
  void give(const std::vector<Given>& all);
  std::vector<Given> of_variables(CLI::App& command) const;
  std::vector<Given> of_section(CLI::App& command, const SettingsFile& file,
                                std::string_view section) const;
  void check_names(const SettingsFile& file) const;

  CLI::App& program_;
  CLI::Option* file_of_program_ = nullptr;
  std::map<const CLI::Option*, std::string> sources_;  // of what has been decided here
};

}  // namespace drover
