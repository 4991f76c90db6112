#include "formats/tiktoken.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/name_index.h"

namespace drover {
namespace {

// The six bits of each base64 character; -1 for others.
constexpr std::array<int8_t, 256> kSixBits = [] {
  std::array<int8_t, 256> out{};
  out.fill(-1);
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i) {
    out[static_cast<unsigned char>(kAlphabet[i])] = static_cast<int8_t>(i);
  }
  return out;
}();

// Padded base64, nothing else: each text has one form. Nothing if it is not that.
std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string out;
  out.reserve(text.size() / 4 * 3 - padding);
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    int8_t six = 0;
    if (i < text.size() - padding) {
      six = kSixBits[static_cast<unsigned char>(text[i])];
      if (six < 0) return std::nullopt;
    }
    bits = bits << 6 | static_cast<uint32_t>(six);
    if (i % 4 == 3) {
      const size_t bytes = i + 1 == text.size() ? 3 - padding : 3;
      for (size_t k = 0; k < 3; ++k) {
        const auto byte = static_cast<char>(bits >> (16 - 8 * k) & 0xff);
        if (k < bytes) {
          out += byte;
        } else if (byte != 0) {
          return std::nullopt;  // bits that the padding says are not there
        }
      }
      bits = 0;
    }
  }
  return out;
}

// Calls body(line, number) for each line that is not empty; numbers count from 1.
template <typename Body>
void for_each_line(std::string_view text, Body body) {
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) body(line, number);
  }
}

}  // namespace

std::vector<std::string> read_tiktoken(const std::filesystem::path& path) {
  const MappedFile file(path);
  const std::string source = printable(file.path(), 300);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  if (text.size() > kMaxTiktokenBytes) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} bytes, got {}", source,
                kMaxTiktokenBytes, text.size());
  }
  size_t count = 0;
  for_each_line(text, [&](std::string_view, size_t) { ++count; });
  if (count == 0)
    throw_error(ErrorKind::kBadData, "{}: expected lines of base64 and rank, got none", source);
  if (count > kMaxTiktokenTokens) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} tokens, got {}", source,
                kMaxTiktokenTokens, count);
  }

  // As many lines as tokens, each rank below their number and none twice: then none is missing.
  std::vector<std::string> tokens(count);
  for_each_line(text, [&](std::string_view line, size_t number) {
    const size_t space = line.find(' ');
    const std::string_view code = line.substr(0, space);
    if (space == std::string_view::npos || code.size() > (kMaxTiktokenTokenBytes + 2) / 3 * 4) {
      throw_error(ErrorKind::kBadData,
                  "{}: line {}: expected base64 of 1 to {} bytes, a space and a rank, got {}",
                  source, number, kMaxTiktokenTokenBytes, printable(line));
    }
    auto token = decode_base64(code);
    if (!token || token->size() > kMaxTiktokenTokenBytes) {
      throw_error(ErrorKind::kBadData, "{}: line {}: expected base64 of 1 to {} bytes, got {}",
                  source, number, kMaxTiktokenTokenBytes, printable(code));
    }
    const std::string_view digits = line.substr(space + 1);
    size_t rank = 0;
    const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (fault != std::errc() || end != digits.data() + digits.size() || rank >= count) {
      throw_error(ErrorKind::kBadData, "{}: line {}: expected a rank from 0 to {}, got {}", source,
                  number, count - 1, printable(digits));
    }
    if (!tokens[rank].empty()) {
      throw_error(ErrorKind::kBadData, "{}: line {}: rank {}: expected once, got twice", source,
                  number, rank);
    }
    tokens[rank] = std::move(*token);
  });

  const auto token_of = [&](uint32_t i) { return std::string_view(tokens[i]); };
  const auto index = index_by_name(tokens.size(), token_of);
  if (const auto twice = find_duplicate(index, token_of)) {
    throw_error(ErrorKind::kBadData, "{}: token \"{}\": expected once, got twice", source,
                printable(token_of(*twice)));
  }
  return tokens;
}

}  // namespace drover
