#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/crc32c.h"
#include "base/error.h"
#include "cache/context_file.h"
#include "cache/context_format.h"
#include "cache/descriptor.h"

namespace drover {
namespace {

namespace fs = std::filesystem;

// A file is written anew when more than this, and more than what is kept, no longer counts.
constexpr uint64_t kSpareBytes = uint64_t{16} << 20;
// Or when it has so many segments: opening reads an index of each.
constexpr int64_t kMaxSegments = 1024;
// The system is asked to begin writing to the disk in pieces of this size, so that the final flush
// has little left to do.
constexpr uint64_t kWriteBehind = uint64_t{32} << 20;

[[noreturn]] void fail(std::string_view doing, const std::string& path, int code) {
  if (code == EACCES || code == EPERM || code == ENOENT || code == ENOTDIR) {
    throw_errno(doing, path, code);
  }
  throw Error(ErrorKind::kCannotWrite,
              fmt::format("{}: cannot {}: {}", printable(path, 300), doing, strerror(code)),
              code == ENOSPC || code == EDQUOT || code == EFBIG
                  ? "free some space, or write to another disk"
                  : "");
}

// The lock of one path: a file beside it, which is there only while somebody writes, or after a
// writer was killed; then it is nobody's and the next one takes it.
class FileLock {
 public:
  FileLock(const std::string& path, std::chrono::milliseconds wait) : path_(path + ".lock") {
    const auto deadline = std::chrono::steady_clock::now() + wait;
    for (;;) {
      file_ = Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
      if (file_.get() < 0) fail("create", path_, errno);
      if (::flock(file_.get(), LOCK_EX | LOCK_NB) == 0) {
        // The one who had it may have removed it since we opened it; then we hold nothing.
        struct stat ours {
        }, there{};
        if (::fstat(file_.get(), &ours) == 0 && ::stat(path_.c_str(), &there) == 0 &&
            ours.st_ino == there.st_ino && ours.st_dev == there.st_dev) {
          return;
        }
        continue;
      }
      if (errno != EWOULDBLOCK && errno != EINTR) fail("lock", path_, errno);
      if (std::chrono::steady_clock::now() >= deadline) {
        throw Error(ErrorKind::kCannotWrite,
                    fmt::format("{}: expected to be the only writer, got another one",
                                printable(path, 300)),
                    "wait until the other process has saved, or save under another name");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  ~FileLock() {
    if (file_.get() >= 0) ::unlink(path_.c_str());
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  const std::string path_;
  Descriptor file_;
};

// Where a link leads, so that what is replaced is the file and not the link.
std::string real_path(const fs::path& path) {
  std::error_code error;
  if (fs::is_symlink(path, error)) {
    const fs::path target = fs::canonical(path, error);
    if (!error) return target.string();
  }
  return path.string();
}

// A name is durable once its folder is. Some file systems cannot flush folders; the file is whole
// all the same.
void sync_folder_of(const std::string& path) {
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : ".";
  const Descriptor file(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (file.get() >= 0) ::fsync(file.get());
}

}  // namespace

struct ContextWriter::State {
  const std::string path;
  const std::string partial;
  const ContextIdentity identity;
  const ContextShape shape;
  const FileLock lock;

  // What the file holds: as it was found, or as published.
  std::vector<int32_t> tokens;
  std::vector<PlacedPicture> pictures;
  bool complete = false;  // with all that is needed to go on from its end, and sound headers
  ContextSlot slot;       // number 0: there is no such file
  int which = 0;          // of the two slots says so

  Descriptor file;
  bool beside = false;     // the file is `partial`, not yet in its place
  bool failed = false;     // something was thrown
  bool announced = false;  // a header that names what was written may be on the disk
  uint64_t whole = 0;      // the file's size without what is not published
  uint64_t offset = 0;     // where the next byte goes
  uint64_t behind = 0;     // up to here the system was asked to begin writing
  uint64_t written = 0;
  int64_t first_page = 0;  // of this segment
  int64_t next_page = 0;
  std::vector<uint32_t> checksums;
  std::vector<std::byte> padded;  // a page with zeros behind, if pages need them

  State(const fs::path& given, const ContextIdentity& whose, std::chrono::milliseconds wait)
      : path(real_path(given)),
        partial(path + ".partial"),
        identity(whose),
        shape(whose.layout),
        lock(path, wait) {
    ::unlink(partial.c_str());  // what a killed writer left; nobody else writes it now
  }

  ~State() {
    if (file.get() < 0) return;
    if (beside) {
      ::unlink(partial.c_str());
    } else if (!announced && offset > whole) {
      // Nothing refers to it. If that fails, it is space that does not count.
      if (::ftruncate(file.get(), static_cast<off_t>(whole)) != 0) return;
    }
  }

  TextView text() const { return {tokens, pictures}; }

  // What is there, checked; nothing if it is to be replaced.
  std::shared_ptr<const ContextFile> existing(ThreadPool& threads) const {
    const Descriptor found(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (found.get() < 0 && errno == ENOENT) return nullptr;
    if (found.get() < 0) throw_errno("open", path, errno);
    const uint64_t size = require_regular(found, path);
    std::array<std::byte, kHeaderBytes> header{};
    const ssize_t n = ::pread(found.get(), header.data(), header.size(), 0);
    if (n < 0) throw_errno("read", path, errno);
    if (size > 0 && !starts_as_context_file(std::span(header).first(static_cast<size_t>(n)))) {
      throw Error(ErrorKind::kUsage,
                  fmt::format("{}: expected a context file or none, got a file of another kind",
                              printable(path, 300)),
                  "it is not overwritten; save under another name, or remove it");
    }
    try {
      return ContextFile::open(path, identity, threads);
    } catch (const Error& error) {
      switch (error.kind()) {
        case ErrorKind::kBadData:
        case ErrorKind::kUsage:
        case ErrorKind::kUnsupported:
        case ErrorKind::kLimit:
          return nullptr;
        default:
          throw;
      }
    }
  }

  void begin(const ContextFile* old, const TextView& known) {
    if (old != nullptr) {
      tokens = old->tokens_;
      pictures = old->pictures_;
      complete = old->resume_length() == old->length() && !old->damaged_header();
      slot = {old->number_, {old->index_offset_, old->index_bytes_, old->index_hash_}};
      which = old->slot_;
    }
    const int64_t common = shared_beginning(text(), known);
    const uint64_t keeps =
        static_cast<uint64_t>(common / kPageTokens * shape.global) * shape.stride +
        static_cast<uint64_t>(common) * sizeof(int32_t);
    const bool append = common > 0 && old->segments() < kMaxSegments &&
                        old->file_bytes() - keeps <= std::max(keeps, kSpareBytes);
    if (append) {
      file = Descriptor(::open(path.c_str(), O_RDWR | O_CLOEXEC));
      if (file.get() < 0) fail("open", path, errno);
      first_page = shape.global > 0 ? common / kPageTokens : 0;
      whole = old->file_bytes();
      offset = aligned(whole);
    } else {
      file = Descriptor(::open(partial.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (file.get() < 0) fail("create", partial, errno);
      beside = true;
      struct stat info {};
      if (::stat(path.c_str(), &info) == 0 && ::fchmod(file.get(), info.st_mode & 0777) != 0) {
        fail("set permissions of", partial, errno);
      }
      offset = kHeaderBytes;
    }
    behind = offset;
    next_page = first_page;
  }

  const std::string& name() const { return beside ? partial : path; }

  void put(std::span<const std::byte> bytes, uint64_t at) {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write", name(), errno);
      if (n == 0) fail("write", name(), EIO);
      bytes = bytes.subspan(static_cast<size_t>(n));
      at += static_cast<uint64_t>(n);
      written += static_cast<uint64_t>(n);
    }
  }

  void append(std::span<const std::byte> bytes) {
    put(bytes, offset);
    offset += bytes.size();
    if (offset - behind >= kWriteBehind) {
      ::sync_file_range(file.get(), static_cast<off_t>(behind), static_cast<off_t>(offset - behind),
                        SYNC_FILE_RANGE_WRITE);
      behind = offset;
    }
  }

  void append_checked(std::span<const std::byte> bytes) {
    append(bytes);
    for (; !bytes.empty(); bytes = bytes.subspan(std::min(kChecksumBlock, bytes.size()))) {
      checksums.push_back(crc32c(bytes.first(std::min(kChecksumBlock, bytes.size()))));
    }
  }

  void append_page(const std::byte* page) {
    if (shape.page_bytes == shape.stride) return append_checked({page, shape.stride});
    padded.resize(shape.stride);
    std::memcpy(padded.data(), page, shape.page_bytes);
    append_checked(padded);
  }

  void sync() {
    if (::fdatasync(file.get()) != 0) fail("flush", name(), errno);
  }

  ContextSave publish(const TextView& now, std::span<const PageList> tail) {
    const auto length = static_cast<int64_t>(now.tokens.size());
    DROVER_CHECK(next_page == length / kPageTokens || shape.global == 0);
    if (length > kMaxContextFileTokens) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} tokens, got {}", printable(path, 300),
                  kMaxContextFileTokens, length);
    }
    if (std::ssize(now.pictures) > kMaxContextFilePictures) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} pictures, got {}",
                  printable(path, 300), kMaxContextFilePictures, now.pictures.size());
    }
    if (const auto fault = fault_of(now, identity.vocab)) {
      throw_error(ErrorKind::kInternal, "{}: a text that cannot be saved: {}", printable(path, 300),
                  *fault);
    }

    SegmentIndex index;
    index.length = length;
    index.first_page = first_page;
    index.kept = slot.number == 0 || beside ? 0 : shared_beginning(text(), now);
    if (index.kept > 0) index.previous = slot.index;
    DROVER_CHECK(first_page <= index.kept / kPageTokens);
    append_tail(index, tail);
    TextView fresh{now.tokens.subspan(static_cast<size_t>(index.kept)), now.pictures};
    while (!fresh.pictures.empty() && fresh.pictures.front().first < index.kept) {
      fresh.pictures = fresh.pictures.subspan(1);
    }
    index.pictures = static_cast<int64_t>(fresh.pictures.size());
    append_checked(encode_text(fresh));
    index.checksums = std::move(checksums);
    const std::vector<std::byte> bytes = encode_index(index, identity);
    const ContextSlot next{slot.number + 1, {offset, bytes.size(), sha256(bytes)}};
    append(bytes);

    const ContextSave what = beside ? ContextSave::kWritten : ContextSave::kAppended;
    const auto header = encode_slot(next);
    if (beside) {
      put_in_place(header);
    } else {
      sync();
      // From here on what was written may be what counts.
      announced = true;
      put(header, static_cast<uint64_t>(1 - which) * kSlotBytes);
      sync();
      put(header, static_cast<uint64_t>(which) * kSlotBytes);
      which = 1 - which;
    }
    slot = next;
    whole = offset;
    announced = false;
    complete = index.has_chunk || shape.chunk_tokens(length) == 0;
    tokens.assign(now.tokens.begin(), now.tokens.end());
    pictures.assign(now.pictures.begin(), now.pictures.end());
    first_page = next_page;  // 0 where no layer is global
    checksums.clear();
    return what;
  }

  void append_tail(SegmentIndex& index, std::span<const PageList> tail) {
    const std::vector<bool>& chunked = identity.layout.chunked;
    DROVER_CHECK(tail.size() == chunked.size());
    if (index.length % kPageTokens != 0) {
      for (size_t layer = 0; layer < chunked.size(); ++layer) {
        if (chunked[layer]) continue;
        DROVER_CHECK(!tail[layer].empty());
        append_page(tail[layer].front());
      }
    }
    const auto count = static_cast<size_t>(shape.chunk_pages(index.length));
    for (size_t layer = 0; layer < chunked.size(); ++layer) {
      index.has_chunk |= chunked[layer] && count > 0 && !tail[layer].empty();
    }
    if (!index.has_chunk) return;
    for (size_t layer = 0; layer < chunked.size(); ++layer) {
      if (!chunked[layer]) continue;
      DROVER_CHECK(tail[layer].size() >= count);
      for (const std::byte* page : tail[layer].first(count)) append_page(page);
    }
  }

  // Data before name, name before folder: whenever the power fails, the name leads to a whole file.
  void put_in_place(std::span<const std::byte> header) {
    put(header, 0);
    put(header, kSlotBytes);
    if (::fsync(file.get()) != 0) fail("flush", partial, errno);
    if (::rename(partial.c_str(), path.c_str()) != 0) fail("rename", partial, errno);
    beside = false;
    sync_folder_of(path);
  }
};

ContextWriter::ContextWriter(const fs::path& path, const ContextIdentity& identity,
                             const TextView& text, ThreadPool& threads,
                             std::chrono::milliseconds wait)
    : state_(std::make_unique<State>(path, identity, wait)) {
  state_->begin(state_->existing(threads).get(), text);
}

ContextWriter::~ContextWriter() = default;

int64_t ContextWriter::pages() const { return state_->next_page; }
uint64_t ContextWriter::written() const { return state_->written; }

int64_t ContextWriter::common(const TextView& text) const {
  return shared_beginning(state_->text(), text);
}

bool ContextWriter::holds(const TextView& text) const {
  return state_->slot.number > 0 && state_->complete && common(text) == std::ssize(text.tokens) &&
         text.tokens.size() == state_->tokens.size();
}

void ContextWriter::append_pages(std::span<const PageList> pages) {
  DROVER_CHECK(!std::exchange(state_->failed, true));
  DROVER_CHECK(std::ssize(pages) == state_->shape.global);
  const size_t count = pages.empty() ? 0 : pages.front().size();
  for (const PageList& list : pages) DROVER_CHECK(list.size() == count);
  for (size_t p = 0; p < count; ++p) {
    for (const PageList& list : pages) state_->append_page(list[p]);
    ++state_->next_page;
  }
  state_->failed = false;
}

ContextSave ContextWriter::publish(const TextView& text, std::span<const PageList> tail) {
  DROVER_CHECK(!std::exchange(state_->failed, true));
  const ContextSave what = state_->publish(text, tail);
  state_->failed = false;
  return what;
}

ContextSaved save_context(const fs::path& path, const ContextIdentity& identity,
                          const TextView& text, std::span<const PageList> pages,
                          ThreadPool& threads, std::chrono::milliseconds wait) {
  ContextWriter writer(path, identity, text, threads, wait);
  ContextSaved saved;
  saved.kept = writer.common(text);
  if (writer.holds(text)) return saved;

  const auto full = text.tokens.size() / static_cast<size_t>(kPageTokens);
  const auto first = static_cast<size_t>(writer.pages());
  std::vector<PageList> body, tail(pages.begin(), pages.end());
  DROVER_CHECK(pages.size() == identity.layout.chunked.size());
  for (size_t layer = 0; layer < pages.size(); ++layer) {
    if (identity.layout.chunked[layer]) continue;
    DROVER_CHECK(pages[layer].size() >= full);
    body.push_back(pages[layer].subspan(first, full - first));
    tail[layer] = pages[layer].subspan(full);
  }
  writer.append_pages(body);
  saved.what = writer.publish(text, tail);
  saved.written = writer.written();
  return saved;
}

}  // namespace drover
