// The byte alphabet that GPT-2 brought: a printable character for every byte, so that vocabulary
// files can hold byte strings as text. Bytes 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for
// themselves; the other 68, in increasing order, are U+0100, U+0101, ...
// Source: spec 7.5.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "text/utf8.h"

namespace drover {

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

inline constexpr auto kByteToCodePoint = [] {
  std::array<char32_t, 256> table{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) table[byte] = stands_for_itself(byte) ? byte : next++;
  return table;
}();

// Code points 0 to 0x143 to bytes, -1 for those outside the alphabet.
inline constexpr auto kCodePointToByte = [] {
  std::array<int16_t, 0x144> table{};
  for (auto& byte : table) byte = -1;
  for (int byte = 0; byte < 256; ++byte) {
    table[kByteToCodePoint[static_cast<size_t>(byte)]] = static_cast<int16_t>(byte);
  }
  return table;
}();

inline std::string bytes_to_alphabet(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes)
    append_utf8(out, kByteToCodePoint[static_cast<unsigned char>(byte)]);
  return out;
}

// The bytes that `text` spells, or nothing when a character of it is outside the alphabet.
inline std::optional<std::string> alphabet_to_bytes(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (!step.well_formed || step.code_point >= kCodePointToByte.size()) return std::nullopt;
    const int16_t byte = kCodePointToByte[step.code_point];
    if (byte < 0) return std::nullopt;
    out += static_cast<char>(byte);
    at += step.length;
  }
  return out;
}

}  // namespace drover
