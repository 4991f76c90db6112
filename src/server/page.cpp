#include "server/page.h"

#include <algorithm>

#include "base/error.h"
#include "base/sha256.h"

namespace drover {
namespace {

// Nothing is loaded but from here, no script or style stands in the document, and no text becomes
// HTML: what a model says cannot do more than be read. Pictures of a question are data URLs.
constexpr std::string_view kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'";

std::string_view type_of(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".css")) return "text/css; charset=utf-8";
  if (name.ends_with(".js")) return "text/javascript; charset=utf-8";
  if (name.ends_with(".svg")) return "image/svg+xml";
  throw_error(ErrorKind::kInternal, "{}: expected html, css, js or svg", name);
}

// If-None-Match: "*", or tags between commas, weak ones too. Ours have no comma in them.
// Source: RFC 9110, 13.1.2.
bool names_tag(std::string_view list, std::string_view tag) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view one = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    while (one.starts_with(' ') || one.starts_with('\t')) one.remove_prefix(1);
    while (one.ends_with(' ') || one.ends_with('\t')) one.remove_suffix(1);
    if (one.starts_with("W/")) one.remove_prefix(2);
    if (one == tag || one == "*") return true;
  }
  return false;
}

}  // namespace

Page::Page() {
  for (const EmbeddedFile& file : page_files()) {
    const std::string digest = hex(sha256(std::as_bytes(std::span(file.text))));
    File out{.text = file.text, .tag = '"' + digest.substr(0, 32) + '"', .headers = {}};
    out.headers = {{"Content-Type", std::string(type_of(file.name))},
                   {"ETag", out.tag},
                   // Asked for each time, and mostly answered with 304: a new program shows its own
                   // page at once.
                   {"Cache-Control", "no-cache"},
                   {"Content-Security-Policy", std::string(kPolicy)},
                   {"X-Content-Type-Options", "nosniff"},
                   {"Referrer-Policy", "no-referrer"},
                   {"Cross-Origin-Opener-Policy", "same-origin"},
                   {"Cross-Origin-Resource-Policy", "same-origin"}};
    const std::string path = file.name == "index.html" ? "/" : "/page/" + std::string(file.name);
    files_.emplace(path, std::move(out));
  }
}

std::optional<HttpAnswer> Page::answer(const HttpRequest& request) const {
  const auto found = files_.find(request.path);
  if (found == files_.end()) return std::nullopt;
  const File& file = found->second;
  const std::string* known = request.header("If-None-Match");
  if (known != nullptr && names_tag(*known, file.tag)) return HttpAnswer{304, file.headers, {}};
  return HttpAnswer{200, file.headers, std::string(file.text)};
}

}  // namespace drover
