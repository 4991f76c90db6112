// The web page at `/`: a chat with the model, made of a few files that are in the program. It needs
// neither a key nor a model to load; whatever it asks then, it asks as any client of the API.
// Owns its headers and shares the files' bytes. Immutable after construction, so thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/embedded.h"
#include "server/http/http_message.h"

namespace drover {

// The files of src/server/page.
std::span<const EmbeddedFile> page_files();

class Page {
 public:
  Page();

  // Whether a file of the page is at this path: "/" or "/page/NAME".
  bool has(std::string_view path) const { return files_.contains(path); }

  // For GET and HEAD, whose body the HTTP floor leaves out: the file, or 304 for who has it
  // already. Nothing for paths that are not of the page.
  std::optional<HttpAnswer> answer(const HttpRequest& request) const;

 private:
  struct File {
    std::string_view text;
    std::string tag;  // in its quotes
    HttpHeaders headers;
  };

  std::map<std::string, File, std::less<>> files_;  // by path
};

}  // namespace drover
