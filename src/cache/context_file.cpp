#include "cache/context_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "base/aligned.h"
#include "base/byte_reader.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "cache/context_format.h"
#include "cache/descriptor.h"

namespace drover {
namespace {

constexpr std::string_view kDamagedHint = "the file is damaged; read the text again";

[[noreturn]] void damaged(const std::string& path, std::string_view what) {
  throw Error(ErrorKind::kBadData, fmt::format("{}: {}", printable(path, 300), what),
              std::string(kDamagedHint));
}

std::shared_ptr<const void> map(const Descriptor& file, uint64_t bytes, const std::string& path) {
  void* const data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) throw_errno("map", path, errno);
  return {data, [bytes](const void* p) { ::munmap(const_cast<void*>(p), bytes); }};
}

// Reading gives an error where touching a mapping would end the process: a disk that fails, a file
// that somebody cuts short.
void read_exactly(const Descriptor& file, std::span<std::byte> out, uint64_t offset,
                  const std::string& path) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(file.get(), out.data() + done, out.size() - done,
                              static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("read", path, errno);
    if (n == 0) {
      damaged(path, fmt::format("expected {} bytes at byte {}, got {} (end of file)", out.size(),
                                offset, done));
    }
    done += static_cast<size_t>(n);
  }
}

struct Header {
  ContextSlot slot;
  int which = 0;
  bool damaged = false;
};

// The header's two slots; the better one counts. A slot that is just being written looks damaged
// for some microseconds, so a damaged one is read again before it is believed.
Header read_header(const Descriptor& file, const std::string& path) {
  for (int attempt = 0;; ++attempt) {
    std::array<std::byte, kHeaderBytes> bytes{};
    read_exactly(file, bytes, 0, path);
    const std::span<const std::byte> all(bytes);
    const auto a = decode_slot(all.first(kSlotBytes), path);
    const auto b = decode_slot(all.subspan(kSlotBytes), path);
    if (a && b) {
      if (a->number == b->number && *a != *b)
        damaged(path, "its two headers contradict each other");
      return a->number >= b->number ? Header{*a, 0, false} : Header{*b, 1, false};
    }
    if (attempt < 5) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } else if (a || b) {
      return a ? Header{*a, 0, true} : Header{*b, 1, true};
    } else if (starts_as_context_file(all)) {
      damaged(path, "both headers: their checksums are wrong");
    } else {
      throw_error(ErrorKind::kBadData, "{}: expected a context file, got other bytes",
                  printable(path, 300));
    }
  }
}

}  // namespace

// Follows the chain of indexes from the newest to the oldest and collects what the newest text
// needs of each segment. Nothing is taken from a segment before its index's hash was right.
class ContextReader {
 public:
  ContextReader(const std::filesystem::path& path, const ContextIdentity& identity)
      : path_(path.string()), identity_(identity), shape_(identity.layout) {}

  std::shared_ptr<const ContextFile> read(ThreadPool& threads) {
    // O_NONBLOCK: a named pipe must not make us wait for its writer before it is refused.
    file_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file_.get() < 0) throw_errno("open", path_, errno);
    require_regular(file_, path_);
    const Header header = read_header(file_, path_);
    const IndexPlace& newest = header.slot.index;
    // After the header: an append that is published meanwhile makes the file longer, never shorter.
    const uint64_t size = require_regular(file_, path_);
    if (newest.bytes == 0 || newest.bytes > size || newest.offset > size - newest.bytes) {
      damaged(path_, fmt::format("expected an index of {} bytes at byte {}, got a file of {} bytes",
                                 newest.bytes, newest.offset, size));
    }
    out_->damaged_header_ = header.damaged;
    out_->number_ = header.slot.number;
    out_->slot_ = header.which;
    out_->index_offset_ = newest.offset;
    out_->index_bytes_ = newest.bytes;
    out_->index_hash_ = newest.hash;
    out_->file_bytes_ = size;
    out_->used_bytes_ = kHeaderBytes;
    const uint64_t mapped = newest.offset + newest.bytes;
    out_->mapping_ = map(file_, mapped, path_);
    memory_ = static_cast<const std::byte*>(out_->mapping_.get());

    follow(newest, mapped);
    verify(threads);
    assemble_text();
    return out_;
  }

 private:
  struct Block {
    uint64_t offset;
    uint32_t bytes;
    uint32_t expected;
  };
  struct TextPart {
    std::vector<int32_t> tokens;
    std::vector<PlacedPicture> pictures;
  };

  void follow(IndexPlace place, uint64_t border) {
    int64_t tokens = -1, pages = 0;  // still needed from older segments; -1: this is the newest
    while (tokens != 0) {
      const SegmentIndex index = read_index(place, border);
      const uint64_t size = index.before_index(shape_);
      // Parts follow each other without gaps, and the segment after the one before.
      if (size > place.offset || place.offset - size < kHeaderBytes) {
        damaged(path_,
                fmt::format("index at byte {}: expected {} bytes before it", place.offset, size));
      }
      const uint64_t begin = place.offset - size;
      if (tokens < 0) {
        // Room is made only for what can be there: all pages and tokens lie before the index.
        const auto most = static_cast<uint64_t>(index.length / kPageTokens * shape_.global);
        if (most > place.offset / shape_.stride ||
            static_cast<uint64_t>(index.length) > place.offset / sizeof(int32_t)) {
          damaged(path_, fmt::format("expected room for {} tokens, got an index at byte {}",
                                     index.length, place.offset));
        }
        start(index, begin + index.pages_bytes(shape_));
        tokens = index.length;
        pages = index.length / kPageTokens;
      } else if (tokens > index.length) {
        damaged(path_, fmt::format("index at byte {}: expected {} tokens, got {}", place.offset,
                                   tokens, index.length));
      }
      take_pages(index, begin, pages);
      take_text(index, begin, tokens);
      ++out_->segments_;
      out_->used_bytes_ += place.bytes;
      pages = std::min(pages, index.first_page);
      tokens = std::min(tokens, index.kept);
      border = begin;
      place = index.previous;
    }
  }

  SegmentIndex read_index(const IndexPlace& place, uint64_t border) {
    if (place.offset % kFileAlignment != 0 || place.bytes > border ||
        place.offset > border - place.bytes) {
      damaged(path_, fmt::format("index of {} bytes at byte {}: expected it before byte {}",
                                 place.bytes, place.offset, border));
    }
    // Sizes are believed only after the hash, so this one needs a bound of its own.
    if (place.bytes > most_index_bytes(place.offset)) {
      damaged(path_, fmt::format("index at byte {}: expected at most {} bytes, got {}",
                                 place.offset, most_index_bytes(place.offset), place.bytes));
    }
    std::vector<std::byte> bytes(place.bytes);
    read_exactly(file_, bytes, place.offset, path_);
    const Digest hash = sha256(bytes);
    if (hash != place.hash) {
      damaged(path_, fmt::format("index at byte {}: expected SHA-256 {}, got {}", place.offset,
                                 short_hex(place.hash), short_hex(hash)));
    }
    return decode_index(bytes, identity_, path_, place.offset);
  }

  // Each checksum stands for 4,096 bytes of the file or more, and there are no more than the
  // longest text needs.
  uint64_t most_index_bytes(uint64_t offset) const {
    const auto pages = static_cast<uint64_t>(pages_of(kMaxContextFileTokens) * shape_.global +
                                             shape_.local * pages_of(shape_.chunk));
    const uint64_t text =
        kMaxContextFileTokens * sizeof(int32_t) + kMaxContextFilePictures * kPictureBytes;
    const uint64_t checksums = std::min(
        offset / kFileAlignment, pages * checksum_blocks(shape_.stride) + checksum_blocks(text));
    return aligned(kFileAlignment + identity_.layout.chunked.size() + checksums * sizeof(uint32_t));
  }

  // The newest segment: room for all pages, and the tail.
  void start(const SegmentIndex& index, uint64_t tail) {
    const auto layers = identity_.layout.chunked.size();
    out_->pages_.resize(layers);
    out_->resume_length_ =
        index.has_chunk ? index.length : index.length - shape_.chunk_tokens(index.length);
    const bool partial = index.length % kPageTokens != 0;
    uint64_t number = static_cast<uint64_t>(index.full_pages() * shape_.global);
    const auto take = [&] {
      add_page(index, number++, tail);
      return memory_ + std::exchange(tail, tail + shape_.stride);
    };
    for (size_t layer = 0; layer < layers; ++layer) {
      if (identity_.layout.chunked[layer]) continue;
      out_->pages_[layer].resize(static_cast<size_t>(pages_of(index.length)));
      if (partial) out_->pages_[layer].back() = take();
    }
    if (!index.has_chunk) return;
    for (size_t layer = 0; layer < layers; ++layer) {
      if (!identity_.layout.chunked[layer]) continue;
      for (int64_t p = 0; p < shape_.chunk_pages(index.length); ++p) {
        out_->pages_[layer].push_back(take());
      }
    }
  }

  // Full pages [first_page, end) are from this segment.
  void take_pages(const SegmentIndex& index, uint64_t begin, int64_t end) {
    for (int64_t p = index.first_page; p < end; ++p) {
      int64_t number = (p - index.first_page) * shape_.global;
      for (size_t layer = 0; layer < out_->pages_.size(); ++layer) {
        if (identity_.layout.chunked[layer]) continue;
        const uint64_t page = begin + static_cast<uint64_t>(number) * shape_.stride;
        out_->pages_[layer][static_cast<size_t>(p)] = memory_ + page;
        add_page(index, static_cast<uint64_t>(number), page);
        ++number;
      }
    }
  }

  // Tokens [kept, end) are from this segment, and the pictures that begin among them. What else is
  // in it may be more than memory holds, so it passes through a buffer.
  void take_text(const SegmentIndex& index, uint64_t begin, int64_t end) {
    if (end <= index.kept) return;
    const uint64_t pages =
        static_cast<uint64_t>(index.full_pages() * shape_.global) + index.tail_pages(shape_);
    const uint64_t offset = begin + pages * shape_.stride;
    const auto tokens = static_cast<uint64_t>(end - index.kept) * sizeof(int32_t);
    const auto records = static_cast<uint64_t>(index.length - index.kept) * sizeof(int32_t);
    TextPart part;
    part.tokens.resize(tokens / sizeof(int32_t));
    std::vector<std::byte> pictures(static_cast<uint64_t>(index.pictures) * kPictureBytes);
    const auto buffer = text_buffer_.span();
    for (uint64_t at = 0; at < index.text_bytes(); at += kChecksumBlock) {
      const auto block = buffer.first(std::min(kChecksumBlock, index.text_bytes() - at));
      read_exactly(file_, block, offset + at, path_);
      check(block, offset + at,
            index.checksums[pages * checksum_blocks(shape_.stride) + at / kChecksumBlock]);
      copy_common(block, at, std::as_writable_bytes(std::span(part.tokens)), 0);
      copy_common(block, at, pictures, records);
    }
    out_->used_bytes_ += index.text_bytes();

    ByteReader in(pictures, path_);
    for (int64_t i = 0; i < index.pictures; ++i) {
      PlacedPicture picture;
      const auto hash = in.take(picture.hash.size(), "picture");
      std::memcpy(picture.hash.data(), hash.data(), hash.size());
      picture.first = in.scalar<int64_t>("picture");
      const auto count = in.scalar<int64_t>("picture");
      // What a later save does not keep does not count.
      if (picture.first >= end) continue;
      if (picture.first < 0 || count <= 0 || count > kMaxContextFileTokens) {
        damaged(path_, fmt::format("picture of {} tokens at {}", count, picture.first));
      }
      picture.end = picture.first + count;
      if (++pictures_ > kMaxContextFilePictures)
        damaged(path_, "more pictures than a text may have");
      part.pictures.push_back(picture);
    }
    text_.push_back(std::move(part));
  }

  // Copies where a piece of a stream, from `at` on, and another from `to_at` on meet.
  static void copy_common(std::span<const std::byte> from, uint64_t at, std::span<std::byte> to,
                          uint64_t to_at) {
    const uint64_t first = std::max(at, to_at);
    const uint64_t end = std::min(at + from.size(), to_at + to.size());
    if (first < end)
      std::memcpy(to.data() + (first - to_at), from.data() + (first - at), end - first);
  }

  // Page `number` of a segment, to be verified.
  void add_page(const SegmentIndex& index, uint64_t number, uint64_t offset) {
    out_->used_bytes_ += shape_.stride;
    for (uint64_t at = 0; at < shape_.stride; at += kChecksumBlock) {
      const uint64_t bytes = std::min(kChecksumBlock, shape_.stride - at);
      const uint64_t block = number * checksum_blocks(shape_.stride) + at / kChecksumBlock;
      blocks_.push_back({offset + at, static_cast<uint32_t>(bytes), index.checksums[block]});
    }
  }

  void check(std::span<const std::byte> bytes, uint64_t offset, uint32_t expected) const {
    const uint32_t got = crc32c(bytes);
    if (got == expected) return;
    damaged(path_, fmt::format("{} bytes at byte {}: expected checksum {:08x}, got {:08x}",
                               bytes.size(), offset, expected, got));
  }

  void verify(ThreadPool& threads) const {
    constexpr size_t kTask = 16;  // blocks: 1 MiB, a fraction of a millisecond
    std::vector<AlignedArray<std::byte>> buffers(static_cast<size_t>(threads.size()));
    for (auto& buffer : buffers) buffer = AlignedArray<std::byte>(kChecksumBlock);
    const auto tasks = static_cast<int64_t>((blocks_.size() + kTask - 1) / kTask);
    threads.run(tasks, [&](int64_t task, int worker) {
      const size_t first = static_cast<size_t>(task) * kTask;
      for (size_t i = first; i < std::min(first + kTask, blocks_.size()); ++i) {
        const Block& block = blocks_[i];
        const auto bytes = buffers[static_cast<size_t>(worker)].span().first(block.bytes);
        read_exactly(file_, bytes, block.offset, path_);
        check(bytes, block.offset, block.expected);
      }
    });
  }

  void assemble_text() {
    for (auto part = text_.rbegin(); part != text_.rend(); ++part) {
      out_->tokens_.insert(out_->tokens_.end(), part->tokens.begin(), part->tokens.end());
      out_->pictures_.insert(out_->pictures_.end(), part->pictures.begin(), part->pictures.end());
    }
    if (const auto fault = fault_of(out_->text(), identity_.vocab)) damaged(path_, *fault);
  }

  const std::string path_;
  const ContextIdentity& identity_;
  const ContextShape shape_;
  std::shared_ptr<ContextFile> out_{new ContextFile};
  Descriptor file_;
  const std::byte* memory_ = nullptr;  // of the mapping
  std::vector<Block> blocks_;
  std::vector<TextPart> text_;  // newest first
  int64_t pictures_ = 0;
  AlignedArray<std::byte> text_buffer_{kChecksumBlock};
};

std::shared_ptr<const ContextFile> ContextFile::open(const std::filesystem::path& path,
                                                     const ContextIdentity& identity,
                                                     ThreadPool& threads) {
  return ContextReader(path, identity).read(threads);
}

}  // namespace drover
