#include "cache/context_format.h"

#include <algorithm>
#include <cstring>

#include "base/byte_reader.h"
#include "base/crc32c.h"
#include "base/error.h"

namespace drover {
namespace {

constexpr std::string_view kIndexMagic = "DrvIndex";
constexpr size_t kSlotHashAt = kSlotBytes - sizeof(Digest);

// Appends scalars as they lie in memory; all machines that Drover runs on are little-endian.
class Bytes {
 public:
  template <typename T>
  void scalar(T value) {
    static_assert(std::is_arithmetic_v<T>);
    raw(&value, sizeof(value));
  }
  void digest(const Digest& digest) { raw(digest.data(), digest.size()); }
  void text(std::string_view text) { raw(text.data(), text.size()); }
  void raw(const void* data, size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    out_.insert(out_.end(), from, from + bytes);
  }
  std::vector<std::byte> take(uint64_t size) {
    out_.resize(size);
    return std::move(out_);
  }
  uint64_t size() const { return out_.size(); }

 private:
  std::vector<std::byte> out_;
};

Digest read_digest(ByteReader& in, std::string_view what) {
  Digest out;
  std::memcpy(out.data(), in.take(out.size(), what).data(), out.size());
  return out;
}

std::span<const std::byte> view(const Digest& digest) { return std::as_bytes(std::span(digest)); }

[[noreturn]] void other(const std::string& path, std::string_view what, std::string_view expected,
                        std::string_view got, std::string_view hint) {
  throw Error(ErrorKind::kUsage,
              fmt::format("{}: this context is of another {}: expected {}, got {}",
                          printable(path, 300), what, expected, got),
              std::string(hint));
}

void write_identity(Bytes& out, const ContextIdentity& identity) {
  const CacheLayout& layout = identity.layout;
  out.digest(identity.model);
  out.digest(identity.tokenizer);
  out.scalar(identity.vocab);
  out.scalar(static_cast<uint32_t>(layout.type));
  out.scalar(layout.kv_heads);
  out.scalar(layout.head_dim);
  out.scalar(ContextShape(layout).chunk);
  // How positions lie in a page: a build with other constants reads other pages.
  for (const int64_t constant : {kPageTokens, kBlockTokens, kPanelWidth}) out.scalar(constant);
  out.scalar(static_cast<int64_t>(layout.chunked.size()));
  for (const bool chunked : layout.chunked) out.scalar(static_cast<uint8_t>(chunked));
}

std::string type_text(uint32_t number) {
  const std::optional<DType> type = dtype_from_gguf(number);
  return type && is_cache_type(*type) ? std::string(cache_type_name(*type))
                                      : fmt::format("type {}", number);
}

void check_identity(ByteReader& in, const ContextIdentity& identity) {
  const CacheLayout& layout = identity.layout;
  const std::string path = in.source();
  const Digest model = read_digest(in, "model");
  if (model != identity.model) {
    other(path, "model", short_hex(identity.model), short_hex(model),
          "a context can be used only with the model that read it; read the text again");
  }
  const Digest tokenizer = read_digest(in, "tokenizer");
  if (tokenizer != identity.tokenizer) {
    other(path, "tokenizer", short_hex(identity.tokenizer), short_hex(tokenizer),
          "read the text again with this one");
  }
  const auto same = [&](std::string_view what, int64_t expected, int64_t got) {
    if (expected == got) return;
    other(path, what, std::to_string(expected), std::to_string(got), "read the text again");
  };
  same("vocabulary size", identity.vocab, in.scalar<int64_t>("vocabulary size"));
  const uint32_t type = in.scalar<uint32_t>("cache type");
  if (type != static_cast<uint32_t>(layout.type)) {
    const std::string name = type_text(type);
    other(path, "cache type", cache_type_name(layout.type), name,
          fmt::format("use it with --cache-type {}", name));
  }
  same("number of kv heads", layout.kv_heads, in.scalar<int64_t>("kv heads"));
  same("head size", layout.head_dim, in.scalar<int64_t>("head size"));
  same("chunk size", ContextShape(layout).chunk, in.scalar<int64_t>("chunk"));
  for (const int64_t constant : {kPageTokens, kBlockTokens, kPanelWidth}) {
    same("page layout", constant, in.scalar<int64_t>("page layout"));
  }
  const auto layers = static_cast<int64_t>(layout.chunked.size());
  same("number of layers", layers, in.scalar<int64_t>("layers"));
  for (int64_t i = 0; i < layers; ++i) {
    same(fmt::format("kind of layer {}", i), layout.chunked[static_cast<size_t>(i)],
         in.scalar<uint8_t>("layer kinds"));
  }
}

}  // namespace

ContextShape::ContextShape(const CacheLayout& layout) {
  local = std::count(layout.chunked.begin(), layout.chunked.end(), true);
  global = static_cast<int64_t>(layout.chunked.size()) - local;
  chunk = local > 0 ? layout.chunk : 0;
  KvPages pages;
  pages.type = layout.type;
  pages.kv_heads = layout.kv_heads;
  pages.head_dim = layout.head_dim;
  page_bytes = static_cast<uint64_t>(pages.page_bytes());
  stride = aligned(page_bytes);
  DROVER_CHECK(page_bytes > 0 && (local == 0 || chunk > 0));
}

std::array<std::byte, kSlotBytes> encode_slot(const ContextSlot& slot) {
  Bytes out;
  out.text(kContextMagic);
  out.scalar(kContextVersion);
  out.scalar(slot.number);
  out.scalar(slot.index.offset);
  out.scalar(slot.index.bytes);
  out.digest(slot.index.hash);
  const std::vector<std::byte> bytes = out.take(kSlotHashAt);
  std::array<std::byte, kSlotBytes> all;
  std::copy(bytes.begin(), bytes.end(), all.begin());
  const Digest hash = sha256(bytes);
  std::copy(view(hash).begin(), view(hash).end(), all.begin() + kSlotHashAt);
  return all;
}

std::optional<ContextSlot> decode_slot(std::span<const std::byte> bytes, const std::string& path) {
  ByteReader in(bytes, path);
  const Digest hash = sha256(bytes.first(kSlotHashAt));
  if (!std::ranges::equal(view(hash), bytes.subspan(kSlotHashAt))) return std::nullopt;
  if (in.text(kContextMagic.size(), "magic") != kContextMagic) return std::nullopt;
  const auto version = in.scalar<uint32_t>("version");
  if (version != kContextVersion) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: context file version: expected {}, got {}", printable(path, 300),
                            kContextVersion, version),
                "it was written by another version of Drover; read the text again");
  }
  ContextSlot slot;
  slot.number = in.scalar<uint64_t>("number");
  slot.index.offset = in.scalar<uint64_t>("index offset");
  slot.index.bytes = in.scalar<uint64_t>("index size");
  slot.index.hash = read_digest(in, "index hash");
  return slot;
}

bool starts_as_context_file(std::span<const std::byte> header) {
  for (uint64_t at = 0; at < kHeaderBytes; at += kSlotBytes) {
    if (header.size() >= at + kContextMagic.size() &&
        std::memcmp(header.data() + at, kContextMagic.data(), kContextMagic.size()) == 0) {
      return true;
    }
  }
  return false;
}

uint64_t SegmentIndex::pages_bytes(const ContextShape& shape) const {
  return static_cast<uint64_t>(full_pages() * shape.global) * shape.stride;
}

uint64_t SegmentIndex::tail_pages(const ContextShape& shape) const {
  const int64_t global = length % kPageTokens != 0 ? shape.global : 0;
  return static_cast<uint64_t>(global + (has_chunk ? shape.local * shape.chunk_pages(length) : 0));
}

uint64_t SegmentIndex::text_bytes() const {
  return aligned(static_cast<uint64_t>(length - kept) * sizeof(int32_t) +
                 static_cast<uint64_t>(pictures) * kPictureBytes);
}

uint64_t SegmentIndex::checksum_count(const ContextShape& shape) const {
  const uint64_t pages = static_cast<uint64_t>(full_pages() * shape.global) + tail_pages(shape);
  return pages * checksum_blocks(shape.stride) + checksum_blocks(text_bytes());
}

std::vector<std::byte> encode_index(const SegmentIndex& index, const ContextIdentity& identity) {
  Bytes out;
  out.text(kIndexMagic);
  write_identity(out, identity);
  out.scalar(index.previous.offset);
  out.scalar(index.previous.bytes);
  out.digest(index.previous.hash);
  out.scalar(index.length);
  out.scalar(index.kept);
  out.scalar(index.first_page);
  out.scalar(index.pictures);
  out.scalar(static_cast<uint8_t>(index.has_chunk));
  out.raw(index.checksums.data(), index.checksums.size() * sizeof(uint32_t));
  return out.take(aligned(out.size()));
}

SegmentIndex decode_index(std::span<const std::byte> bytes, const ContextIdentity& identity,
                          const std::string& path, uint64_t offset) {
  const auto require = [&](bool good, std::string_view what) {
    if (good) return;
    throw Error(ErrorKind::kBadData,
                fmt::format("{}: index at byte {}: {}", printable(path, 300), offset, what),
                "the file is damaged or forged; read the text again");
  };
  ByteReader in(bytes, path);
  require(in.text(std::min<uint64_t>(kIndexMagic.size(), bytes.size()), "magic") == kIndexMagic,
          "expected an index, got other bytes");
  check_identity(in, identity);

  const ContextShape shape(identity.layout);
  SegmentIndex index;
  index.previous.offset = in.scalar<uint64_t>("previous index");
  index.previous.bytes = in.scalar<uint64_t>("previous index");
  index.previous.hash = read_digest(in, "previous index");
  index.length = in.scalar<int64_t>("length");
  index.kept = in.scalar<int64_t>("tokens kept");
  index.first_page = in.scalar<int64_t>("pages kept");
  index.pictures = in.scalar<int64_t>("pictures");
  const auto has_chunk = in.scalar<uint8_t>("chunk");

  if (index.length > kMaxContextFileTokens) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} tokens, got {}", printable(path, 300),
                kMaxContextFileTokens, index.length);
  }
  require(index.length >= 0, "the length is negative");
  require(index.kept >= 0 && index.kept <= index.length, "more is kept than there is");
  require((index.kept == 0) == (index.previous == IndexPlace{}),
          "what is kept and the save before do not agree");
  require(index.first_page >= 0 && index.first_page <= index.kept / kPageTokens,
          "more pages are kept than tokens");
  require(index.pictures >= 0 && index.pictures <= kMaxContextFilePictures,
          "more pictures than a text may have");
  require(has_chunk <= (shape.chunk_tokens(index.length) > 0 ? 1 : 0),
          "pages of a chunk that has no tokens");
  index.has_chunk = has_chunk != 0;
  const uint64_t count = index.checksum_count(shape);
  const auto checksums = in.take(count * sizeof(uint32_t), "checksums");
  index.checksums.resize(count);
  std::copy_n(checksums.data(), checksums.size(),
              std::as_writable_bytes(std::span(index.checksums)).data());
  require(aligned(in.offset()) == bytes.size(), "its size is not that of its contents");
  return index;
}

std::optional<std::string> fault_of(const TextView& text, int64_t vocab) {
  for (size_t i = 0; i < text.tokens.size(); ++i) {
    if (text.tokens[i] < 0 || text.tokens[i] >= vocab) {
      return fmt::format("token {}: expected 0 to {}, got {}", i, vocab - 1, text.tokens[i]);
    }
  }
  int64_t end = 0;
  const auto length = static_cast<int64_t>(text.tokens.size());
  for (const PlacedPicture& picture : text.pictures) {
    if (picture.first < end || picture.end <= picture.first || picture.end > length) {
      return fmt::format("picture in [{}, {}): expected it after {} and before {}", picture.first,
                         picture.end, end, length);
    }
    end = picture.end;
  }
  return std::nullopt;
}

std::vector<std::byte> encode_text(const TextView& text) {
  Bytes out;
  out.raw(text.tokens.data(), text.tokens.size_bytes());
  for (const PlacedPicture& picture : text.pictures) {
    out.digest(picture.hash);
    out.scalar(picture.first);
    out.scalar(picture.end - picture.first);
  }
  return out.take(aligned(out.size()));
}

}  // namespace drover
