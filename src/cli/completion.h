// Scripts that teach a shell to complete commands, flags and their values, made from the tree of
// commands and options.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace drover {

std::string bash_completion(const CLI::App& program);
std::string zsh_completion(const CLI::App& program);
std::string fish_completion(const CLI::App& program);

}  // namespace drover
