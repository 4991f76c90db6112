// Files that may be packed with gzip (RFC 1952). Pure functions, thread-safe.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace drover {

// What `bytes` unpack to, all members of it one after the other. kLimit beyond `limit` bytes;
// kBadData for what is no gzip, damaged or cut short. `source` is named in errors.
std::string gunzip(std::string_view bytes, const std::string& source, size_t limit);

// The whole file, unpacked if its first two bytes are those of gzip. Throws what MappedFile and
// gunzip() throw; kLimit for a plain file over `limit` too.
std::string read_unpacked(const std::filesystem::path& path, size_t limit);

}  // namespace drover
