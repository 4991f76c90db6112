// A file that keeps what a conversation remembers, so that a long text is read once: its tokens,
// the pictures in it, and the pages of keys and values of every layer. It is whole or absent: a
// file is checked to the last used bit before any of it is given out, and a writer that is killed
// leaves the text that was there before or the new one.
//
// The file, all integers little-endian, everything on borders of 4,096 bytes:
//   two header slots   each: "DroverCx", version, number of the save, where its index is and the
//                      index's SHA-256, the slot's own SHA-256. Both say the same but while a save
//                      is being published; the valid one with the higher number counts.
//   a segment per save
//     pages    the global layers' full pages that were not there before, page after page and
//              within a page layer after layer; never changed
//     tail     the global layers' last page if it is not full, then the pages of the chunk that
//              the text ends in, of every chunked layer
//     text     the new tokens (int32) and pictures (hash, first token, tokens)
//     index    whose file it is (fingerprints, layout), how much of the save before is kept, where
//              that save's index is and its SHA-256, CRC32C of every 64 KiB of the three parts
//
// A save whose text begins as the file's does appends a segment; what was written is never
// overwritten, since readers may have it mapped. Space that no longer counts (old tails, the end of
// a text that went on otherwise, what a killed writer left) is regained by writing the file anew
// beside it, when it exceeds what counts. Pages are of one instruction set's making: with AMX they
// differ in last bits from those of other processors, and a file does not say which it was.
//
// A file that somebody else cuts short while it is mapped ends the process (SIGBUS), as everywhere
// where files are mapped. Other writing into it, past our lock, is not noticed after opening.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/sha256.h"
#include "base/threads.h"
#include "cache/kv_cache.h"
#include "cache/text_view.h"

namespace drover {

// Longer texts are refused with kLimit: thirteen times the ten million that the family is made for.
inline constexpr int64_t kMaxContextFileTokens = int64_t{1} << 27;
inline constexpr int64_t kMaxContextFilePictures = int64_t{1} << 20;

// Whose pages these are. A file is used with exactly the same only.
struct ContextIdentity {
  Digest model;      // model/fingerprint.h
  Digest tokenizer;  // likewise
  int64_t vocab = 0;
  CacheLayout layout;
};

// Pages of one layer, in order, each kv_heads * HeadLayout.bytes bytes.
using PageList = std::span<const std::byte* const>;

// An opened file. Immutable and thread-safe; whoever holds it keeps the mapping, and so the pages,
// alive.
class ContextFile {
 public:
  // Maps the newest save and verifies all of it, on all threads of the pool. Throws kNotFound,
  // kPermission, kIo; kBadData for damage or a file of another kind, kUnsupported for a newer
  // version, kUsage if the identity is not this one (the message says what differs), kLimit.
  static std::shared_ptr<const ContextFile> open(const std::filesystem::path& path,
                                                 const ContextIdentity& identity,
                                                 ThreadPool& threads);

  TextView text() const { return {tokens_, pictures_}; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }

  // A global layer: all positions, ceil(length / kPageTokens) pages, aligned to 4,096 bytes. A
  // chunked layer: the positions of the chunk that the text ends in, or nothing. The last page of
  // each may be partly filled; to go on from it, it must be copied, since the mapping is read-only.
  PageList pages(int64_t layer) const { return pages_[static_cast<size_t>(layer)]; }

  // How many tokens need not be read again: all, or, if the save came without the chunk's pages,
  // those before the border where the last chunk begins.
  int64_t resume_length() const { return resume_length_; }

  // One header slot was damaged; the text is whole all the same. It may be the one saved before the
  // last, if the power failed just when the last was published.
  bool damaged_header() const { return damaged_header_; }

  uint64_t file_bytes() const { return file_bytes_; }  // all of the file
  uint64_t used_bytes() const { return used_bytes_; }  // what this text needs of it
  int64_t segments() const { return segments_; }       // saves that it is made of

 private:
  friend class ContextReader;
  friend class ContextWriter;
  ContextFile() = default;

  std::shared_ptr<const void> mapping_;
  std::vector<int32_t> tokens_;
  std::vector<PlacedPicture> pictures_;
  std::vector<std::vector<const std::byte*>> pages_;  // per layer
  int64_t resume_length_ = 0;
  bool damaged_header_ = false;
  uint64_t file_bytes_ = 0;
  uint64_t used_bytes_ = 0;
  int64_t segments_ = 0;
  // Of the newest save.
  uint64_t number_ = 0;
  int slot_ = 0;
  uint64_t index_offset_ = 0;
  uint64_t index_bytes_ = 0;
  Digest index_hash_{};
};

enum class ContextSave {
  kUnchanged,  // the file held this text already; nothing was written
  kAppended,   // what the texts have in common was kept
  kWritten,    // a new file, or one written anew in the place of the old
};

// Writes a file while its text is being read: full pages are handed over as they come, from page
// pages() on, and lie on the disk before the text is at its end. Nothing is to be seen of it before
// publish(), which may be called again as the text grows. Destroyed without, it leaves the file as
// it was. One thread at a time uses it.
//
// Every call may throw kCannotWrite (the disk is full, another process is writing), kPermission or
// kIo. Then the file is as it was, or as the publish() that threw would have left it, and only
// destruction is allowed.
class ContextWriter {
 public:
  // Takes the lock PATH.lock, waiting for at most `wait`, and looks at what is there. A file that
  // is damaged or of another model will be replaced; one that is no context file is kUsage. `text`
  // is what is known so far of the text to be written, to learn how much of the old one is kept.
  ContextWriter(const std::filesystem::path& path, const ContextIdentity& identity,
                const TextView& text, ThreadPool& threads,
                std::chrono::milliseconds wait = std::chrono::seconds(2));
  ~ContextWriter();
  ContextWriter(const ContextWriter&) = delete;
  ContextWriter& operator=(const ContextWriter&) = delete;

  // The page that append_pages() expects next: so many full pages are there. 0 for a file that is
  // new or written anew.
  int64_t pages() const;

  // The next full pages of all global layers: a list per global layer, all of one length.
  void append_pages(std::span<const PageList> pages);

  // Makes the file hold this text, durably. All its full pages must have been appended. tail: a
  // list per layer; global: the last page, if the length is no multiple of kPageTokens; chunked:
  // the pages of the chunk that the text ends in, or nothing for all of them. Longer lists are
  // allowed. Returns kAppended or kWritten.
  ContextSave publish(const TextView& text, std::span<const PageList> tail);

  // Tokens of this text that the file, as it was found or published, holds.
  int64_t common(const TextView& text) const;
  // The file holds exactly this text, and all that is needed to go on from its end.
  bool holds(const TextView& text) const;

  // Bytes written so far.
  uint64_t written() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct ContextSaved {
  ContextSave what = ContextSave::kUnchanged;
  int64_t kept = 0;  // tokens that were in the file before
  uint64_t written = 0;
};

// Makes the file hold exactly this text. pages: a list per layer; global: all pages of the text;
// chunked: those of the chunk it ends in, or nothing for all. Longer lists are allowed. A text that
// is a beginning of the one in the file replaces it, too: what is saved last is what is there.
ContextSaved save_context(const std::filesystem::path& path, const ContextIdentity& identity,
                          const TextView& text, std::span<const PageList> pages,
                          ThreadPool& threads,
                          std::chrono::milliseconds wait = std::chrono::seconds(2));

}  // namespace drover
