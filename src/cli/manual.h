// Manual pages, in roff (man(7)), made from the tree of commands and options.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// drover(1), or of a command drover-COMMAND(1). `date` is YYYY-MM-DD.
std::string manual_page(const CLI::App& program, const CLI::App* command, std::string_view version,
                        std::string_view date);

// What a page says beyond the options: what the command is for, and examples of it. Empty where
// there is nothing of that name.
struct ManualText {
  std::string_view name;
  std::string_view description;  // paragraphs, an empty line between
  struct Example {
    std::string_view purpose, line;
  };
  std::vector<Example> examples;
};
const ManualText* manual_text(std::string_view name);

}  // namespace drover
