// A text that the build put into the program (drover_embed in cmake/drover.cmake). It lives as long
// as the program. Where such files are wanted, their function is declared:
// std::span<const EmbeddedFile> NAME();
#pragma once

#include <span>
#include <string_view>

namespace drover {

struct EmbeddedFile {
  std::string_view name;  // "base.json"
  std::string_view text;
};

}  // namespace drover
