// What sources of files have in common: their settings, the files, and the side of an item.
#pragma once

#include <filesystem>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "formats/json.h"
#include "train/sources.h"

namespace drover {

// Of one file's data, unpacked.
inline constexpr size_t kMaxDataBytes = (size_t{1} << 31) - 1;

// The fields of a source's settings; errors name the source.
JsonFields source_fields(const boost::json::object& settings);

// kBadData for a field that is none of these.
void expect_only(const JsonFields& fields, std::initializer_list<std::string_view> known,
                 std::initializer_list<std::string_view> more = {});

struct DataFiles {
  std::string source;  // its name
  std::vector<SourceFacts::File> files;
  std::vector<std::filesystem::path> paths;  // of each

  std::string salt;
  double fraction = 0;
  bool want_held_out = false;

  // Whether the item falls on the side that is wanted.
  bool takes(std::string_view item) const {
    return held_out(salt, item, fraction) == want_held_out;
  }
};

// Reads the common settings (kinds.h) and those of `own` kind are allowed beside. Patterns are
// expanded, in order; a file that two of them match is taken once. kNotFound for a pattern that
// matches no file.
DataFiles data_files(const JsonFields& fields, const SourceContext& context,
                     std::initializer_list<std::string_view> own);

// The text of file i, whose size and digest are noted.
std::string read_data(DataFiles& data, size_t i);

// Calls `line(text, number)` for each line that is not empty, from 1; "\r\n" ends one too.
void for_each_line(std::string_view text,
                   const std::function<void(std::string_view, int64_t)>& line);

Digest digest_of(std::string_view text);

}  // namespace drover
