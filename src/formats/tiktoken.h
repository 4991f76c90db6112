// Reads a vocabulary in tiktoken's form (spec section 7.5), Meta's tokenizer.model: lines of a
// token's bytes in base64, a space and its rank. Special tokens are not in the file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace drover {

// The largest file and vocabulary that are read, and the longest token.
inline constexpr size_t kMaxTiktokenBytes = size_t{64} << 20;
inline constexpr size_t kMaxTiktokenTokens = size_t{1} << 20;
inline constexpr size_t kMaxTiktokenTokenBytes = 1024;

// The tokens' bytes by rank. Throws kNotFound and the like, kLimit, and kBadData with the line for
// bad base64 or a bad rank, a rank or token given twice, and ranks that leave a gap.
std::vector<std::string> read_tiktoken(const std::filesystem::path& path);

}  // namespace drover
