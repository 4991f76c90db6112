#include "server/keys.h"

#include <algorithm>
#include <charconv>
#include <fstream>

#include "base/error.h"

namespace drover {
namespace {

bool read_digest(std::string_view hex, Digest& out) {
  if (hex.size() != 2 * out.size()) return false;
  for (size_t i = 0; i < out.size(); ++i) {
    const char* const at = hex.data() + 2 * i;
    const auto [end, error] = std::from_chars(at, at + 2, out[i], 16);
    if (error != std::errc() || end != at + 2) return false;
  }
  return true;
}

Digest digest_of(std::string_view key) { return sha256(std::as_bytes(std::span(key))); }

}  // namespace

ApiKeys ApiKeys::load(const std::filesystem::path& path) {
  const std::string name = printable(path.native(), 300);
  std::ifstream in(path);
  if (!in) throw_errno("read", path.native(), errno);
  ApiKeys out;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    constexpr std::string_view kSpace = " \t\r";
    const size_t begin = line.find_first_not_of(kSpace);
    if (begin == std::string::npos || line[begin] == '#') continue;
    const size_t name_end = std::min(line.find_first_of(kSpace, begin), line.size());
    const size_t key_begin = std::min(line.find_first_not_of(kSpace, name_end), line.size());
    const size_t key_end = std::min(line.find_first_of(kSpace, key_begin), line.size());
    const auto wrong = [&](std::string_view what) {
      throw_error(ErrorKind::kBadData, "{}: line {}: {}", name, number, what);
    };
    if (key_begin == key_end) wrong("expected a name and a key");
    if (line.find_first_not_of(kSpace, key_end) != std::string::npos) {
      wrong("expected a name and a key, got more");
    }
    const std::string_view key = std::string_view(line).substr(key_begin, key_end - key_begin);
    Key entry{line.substr(begin, name_end - begin), {}};
    if (key.starts_with("sha256:")) {
      if (!read_digest(key.substr(7), entry.digest)) wrong("expected 64 hexadecimal digits");
    } else {
      entry.digest = digest_of(key);
    }
    for (const Key& other : out.keys_) {
      if (other.digest == entry.digest) wrong("the key stands there twice");
    }
    out.keys_.push_back(std::move(entry));
  }
  if (in.bad()) throw_error(ErrorKind::kIo, "{}: cannot read", name);
  if (out.empty()) throw_error(ErrorKind::kBadData, "{}: expected at least one key", name);
  return out;
}

const std::string* ApiKeys::owner(std::string_view key) const {
  const Digest digest = digest_of(key);
  const std::string* found = nullptr;
  for (const Key& one : keys_) {
    unsigned differs = 0;
    for (size_t i = 0; i < digest.size(); ++i) differs |= digest[i] ^ one.digest[i];
    found = differs == 0 ? &one.name : found;
  }
  return found;
}

}  // namespace drover
