// Internal to context_file: the records of the file, and the arithmetic of where things lie. No
// system calls here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/context_file.h"

namespace drover {

inline constexpr uint64_t kFileAlignment = 4096;
inline constexpr uint64_t kSlotBytes = 4096;
inline constexpr uint64_t kHeaderBytes = 2 * kSlotBytes;
inline constexpr uint64_t kChecksumBlock = 65536;
inline constexpr uint64_t kPictureBytes = 48;
inline constexpr uint32_t kContextVersion = 1;
inline constexpr std::string_view kContextMagic = "DroverCx";

constexpr uint64_t aligned(uint64_t bytes) {
  return (bytes + kFileAlignment - 1) / kFileAlignment * kFileAlignment;
}
constexpr uint64_t checksum_blocks(uint64_t bytes) {
  return (bytes + kChecksumBlock - 1) / kChecksumBlock;
}
inline int64_t pages_of(int64_t positions) { return (positions + kPageTokens - 1) / kPageTokens; }

// What the layout makes of a length.
struct ContextShape {
  int64_t global = 0;  // layers
  int64_t local = 0;
  int64_t chunk = 0;        // 0 if there is no chunked layer
  uint64_t page_bytes = 0;  // as in memory
  uint64_t stride = 0;      // in the file

  explicit ContextShape(const CacheLayout& layout);

  // Tokens of the chunk that a text of this length ends in; 0 at a border.
  int64_t chunk_tokens(int64_t length) const { return chunk > 0 ? length % chunk : 0; }
  int64_t chunk_pages(int64_t length) const { return pages_of(chunk_tokens(length)); }
};

// Where an index lies and what it must be.
struct IndexPlace {
  uint64_t offset = 0;  // 0: there is none
  uint64_t bytes = 0;
  Digest hash{};

  bool operator==(const IndexPlace&) const = default;
};

// A header slot.
struct ContextSlot {
  uint64_t number = 0;
  IndexPlace index;

  bool operator==(const ContextSlot&) const = default;
};
std::array<std::byte, kSlotBytes> encode_slot(const ContextSlot& slot);

// Nothing if the slot is damaged. Throws kUnsupported for a whole slot of another version.
std::optional<ContextSlot> decode_slot(std::span<const std::byte> bytes, const std::string& path);

// Whether one of the header's slots begins as ours do, be it damaged or not.
bool starts_as_context_file(std::span<const std::byte> header);

struct SegmentIndex {
  IndexPlace previous;
  int64_t length = 0;      // tokens of the whole text
  int64_t kept = 0;        // of the previous save's tokens; 0 if there is none
  int64_t first_page = 0;  // full pages kept
  bool has_chunk = false;  // the tail has pages of chunked layers
  int64_t pictures = 0;    // new ones
  std::vector<uint32_t> checksums;

  // Sizes of the segment's parts.
  int64_t full_pages() const { return length / kPageTokens - first_page; }
  uint64_t pages_bytes(const ContextShape& shape) const;
  uint64_t tail_pages(const ContextShape& shape) const;
  uint64_t text_bytes() const;
  uint64_t before_index(const ContextShape& shape) const {
    return pages_bytes(shape) + tail_pages(shape) * shape.stride + text_bytes();
  }
  uint64_t checksum_count(const ContextShape& shape) const;
};

// Whole multiples of kFileAlignment, as everything.
std::vector<std::byte> encode_index(const SegmentIndex& index, const ContextIdentity& identity);

// Throws kUsage if it is of another identity, kBadData for a broken rule of the format. Sizes are
// checked against each other, not yet against the file.
SegmentIndex decode_index(std::span<const std::byte> bytes, const ContextIdentity& identity,
                          const std::string& path, uint64_t offset);

// Nothing, or what is wrong with a text: a token or a picture out of range, or pictures that meet.
std::optional<std::string> fault_of(const TextView& text, int64_t vocab);

std::vector<std::byte> encode_text(const TextView& text);

}  // namespace drover
