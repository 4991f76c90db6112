// The program as a tree of commands and options, with its help and its settings. What it does is
// done while it parses, in the commands' callbacks.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "cli/settings.h"

namespace drover {

class Program {
 public:
  Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  CLI::App& app() { return app_; }
  const Settings& settings() const { return *settings_; }

 private:
  CLI::App app_;
  std::optional<Settings> settings_;
};

}  // namespace drover
