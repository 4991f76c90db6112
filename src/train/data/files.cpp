#include "train/data/files.h"

#include <glob.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/gzip.h"

namespace drover {
namespace {

namespace fs = std::filesystem;

// The folder's own name is no pattern.
std::string escaped(const std::string& folder) {
  std::string out;
  for (const char c : folder) {
    if (c == '*' || c == '?' || c == '[' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

// The files that the pattern matches, sorted by name.
std::vector<std::string> expand(const std::string& pattern) {
  glob_t found{};
  const int code = ::glob(pattern.c_str(), 0, nullptr, &found);
  const std::unique_ptr<glob_t, void (*)(glob_t*)> guard(&found, ::globfree);
  if (code == GLOB_NOSPACE) throw std::bad_alloc();
  std::vector<std::string> out;
  for (size_t i = 0; code == 0 && i < found.gl_pathc; ++i) {
    std::error_code ignored;
    if (fs::is_regular_file(found.gl_pathv[i], ignored)) out.emplace_back(found.gl_pathv[i]);
  }
  std::sort(out.begin(), out.end());  // by bytes: glob's order is the locale's
  return out;
}

}  // namespace

JsonFields source_fields(const boost::json::object& settings) {
  JsonFields fields(settings, "source");
  const std::string_view name =
      fields.text("name").value_or(fields.text("kind").value_or("without a kind"));
  return {settings, fmt::format("source {}", printable(name))};
}

void expect_only(const JsonFields& fields, std::initializer_list<std::string_view> known,
                 std::initializer_list<std::string_view> more) {
  std::vector<std::string_view> all(known);
  all.insert(all.end(), more.begin(), more.end());
  for (const auto& entry : fields.object()) {
    const std::string_view key(entry.key().data(), entry.key().size());
    if (std::find(all.begin(), all.end(), key) != all.end()) continue;
    throw_error(ErrorKind::kBadData, "{}: {}: expected one of {}", fields.where(), printable(key),
                fmt::join(all, ", "));
  }
}

DataFiles data_files(const JsonFields& fields, const SourceContext& context,
                     std::initializer_list<std::string_view> own) {
  expect_only(fields, {"kind", "name", "files", "licence", "origin", "held_out", "salt"}, own);
  fields.required_text("licence");
  fields.required_text("origin");
  DataFiles out;
  out.source = fields.text("name").value_or(fields.required_text("kind"));
  out.salt = fields.text("salt").value_or("");
  out.fraction = fields.number("held_out").value_or(0);
  if (!(out.fraction >= 0 && out.fraction <= 1)) {
    throw_error(ErrorKind::kBadData, "{}: held_out: expected 0 to 1, got {}", fields.where(),
                out.fraction);
  }
  out.want_held_out = context.held_out;

  const auto patterns = fields.texts("files");
  if (!patterns || patterns->empty()) {
    throw_error(ErrorKind::kBadData, "{}: files: expected an array of names or patterns",
                fields.where());
  }
  for (const std::string_view pattern : *patterns) {
    // What a folder of the machine is called must not decide what is held out: names begin where
    // the pattern does.
    const bool absolute = fs::path(pattern).is_absolute() || context.folder.empty();
    const std::string folder = absolute ? "" : (context.folder / "").string();
    const std::vector<std::string> found = expand(escaped(folder) + std::string(pattern));
    if (found.empty()) {
      throw_error(ErrorKind::kNotFound, "{}: files: expected files, got none that match {}",
                  fields.where(), printable(folder + std::string(pattern), 300));
    }
    for (const std::string& path : found) {
      if (std::find(out.paths.begin(), out.paths.end(), fs::path(path)) != out.paths.end()) {
        continue;
      }
      out.paths.emplace_back(path);
      out.files.push_back({path.substr(folder.size()), 0, {}});
    }
  }
  return out;
}

std::string read_data(DataFiles& data, size_t i) {
  {
    const MappedFile packed(data.paths[i]);
    data.files[i].bytes = static_cast<int64_t>(packed.bytes().size());
    data.files[i].sha256 = sha256(packed.bytes());
  }
  return read_unpacked(data.paths[i], kMaxDataBytes);
}

void for_each_line(std::string_view text,
                   const std::function<void(std::string_view, int64_t)>& line) {
  int64_t number = 1;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view one = text.substr(at, end - at);
    if (one.ends_with('\r')) one.remove_suffix(1);
    if (!one.empty()) line(one, number);
    at = end + 1;
  }
}

Digest digest_of(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }

}  // namespace drover
