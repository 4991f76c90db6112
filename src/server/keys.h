// The keys that clients of a server show, each with the name of its owner.
//
// The file has a line for each: the name, white space, and the key, or "sha256:" and its digest in
// hexadecimal, so that the file need not hold the secret. Lines that are empty or begin with # are
// skipped. Only digests are kept in memory. Immutable once loaded, thread-safe.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace drover {

class ApiKeys {
 public:
  ApiKeys() = default;  // none: everybody may ask
  // Throws kBadData naming the line, never its key, and what reading throws. A file without a key
  // is an error: it would let everybody in.
  static ApiKeys load(const std::filesystem::path& path);

  bool empty() const { return keys_.empty(); }
  // The owner's name, or null if the key is nobody's. Takes as long for any key of a length: no
  // answer's time tells how much of a guess was right.
  const std::string* owner(std::string_view key) const;

 private:
  struct Key {
    std::string name;
    Digest digest;
  };
  std::vector<Key> keys_;
};

}  // namespace drover
