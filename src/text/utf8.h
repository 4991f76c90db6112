// One step of UTF-8 decoding, for text that may be broken anywhere. Ill-formed bytes are grouped as
// Unicode recommends (chapter 3, "maximal subparts"): each group is what a lossy decoder would show
// as one U+FFFD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace drover {

inline constexpr char32_t kReplacement = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

struct Utf8Step {
  char32_t code_point;  // kReplacement when ill-formed
  uint8_t length;       // bytes taken, 1 to 4
  bool well_formed;
  bool cut_short;  // ill-formed only because the text ends: more bytes could complete it
};

// The code point or the ill-formed group that starts at text[at]; `at` must be inside the text.
inline Utf8Step utf8_step(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(at);
  if (lead < 0x80) return {lead, 1, true, false};
  // Length, and the range that the second byte must keep: it excludes overlong forms, surrogates
  // and everything above U+10FFFF. All later bytes are 0x80 to 0xBF.
  unsigned length = 0, low = 0x80, high = 0xBF;
  char32_t code_point = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    code_point = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    code_point = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {kReplacement, 1, false, false};
  }
  for (unsigned k = 1; k < length; ++k) {
    if (at + k == text.size()) return {kReplacement, static_cast<uint8_t>(k), false, true};
    const unsigned next = byte(at + k);
    if (next < low || next > high) return {kReplacement, static_cast<uint8_t>(k), false, false};
    code_point = code_point << 6 | (next & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, static_cast<uint8_t>(length), true, false};
}

// Appends a code point below 0x110000.
inline void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

// The same text where every byte that is no UTF-8 became U+FFFD: for JSON, which is whole characters.
inline std::string as_utf8(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    append_utf8(out, step.code_point);
    at += step.length;
  }
  return out;
}

}  // namespace drover
