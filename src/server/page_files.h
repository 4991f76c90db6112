// The files of the web page, as the build put them into the program (src/server/page/,
// cmake/embed.cmake). They live as long as the program.
#pragma once

#include <span>
#include <string_view>

namespace drover {

struct PageFile {
  std::string_view name;  // "index.html"
  std::string_view text;
};

std::span<const PageFile> page_files();

}  // namespace drover
