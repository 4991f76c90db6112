// A file of settings: what a service is told without a command line. Its form is a part of TOML,
// and what it means to the options is settings.h's affair.
//
//   threads = 8                  # for every command that has --threads
//   [serve]                      # for `drover serve`
//   model = "scout"
//   alias = ["scout", "llama-4"]
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace drover {

struct Setting {
  std::string section;  // empty: above all sections
  std::string key;
  std::vector<std::string> values;  // one, or those of a list
  int line = 0;
};

struct SettingsFile {
  struct Section {
    std::string name;
    int line = 0;
  };
  std::string name;  // for messages
  std::vector<Section> sections;
  std::vector<Setting> settings;
};

// Sections, and `key = value` with a string in " or ', a number, true, false, or a list of those,
// which may go over several lines; # begins a comment. Throws kConfig with name and line for what
// is neither, and for a key that is there twice.
SettingsFile parse_settings(std::string_view text, std::string name);

// Of at most 64 KB. Throws as reading does, and as above.
SettingsFile read_settings(const std::string& path);

}  // namespace drover
