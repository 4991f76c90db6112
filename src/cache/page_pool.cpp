#include "cache/page_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/aligned.h"
#include "base/error.h"

namespace drover {
namespace {

// A stretch of memory: several huge pages of the system, and little beside what a cache holds.
constexpr int64_t kSlabBytes = int64_t{32} << 20;
constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

struct PagePool::Store {
  int64_t page_bytes;
  int64_t capacity;
  int file = -1;

  std::mutex mutex;
  std::vector<std::pair<void*, size_t>> slabs;
  std::vector<std::byte*> idle;  // the one used last on top, while it may be in a cache
  int64_t file_bytes = 0;
  int64_t made = 0;
  int64_t held = 0;

  ~Store() {
    for (const auto& [memory, bytes] : slabs) ::munmap(memory, bytes);
    if (file >= 0) ::close(file);
  }

  // Takes another slab; what it holds is idle.
  void grow() {
    const int64_t fits = std::max<int64_t>(1, kSlabBytes / page_bytes);
    const int64_t count = std::min(fits, capacity - made);
    const int64_t bytes = (count * page_bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = MAP_FAILED;
    if (file < 0) {
      // Huge pages begin at multiples of their size: ask for one more and give back the ends.
      std::byte* wide = static_cast<std::byte*>(::mmap(
          nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (wide != MAP_FAILED) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(wide);
        const int64_t before = static_cast<int64_t>((kHugePage - at % kHugePage) % kHugePage);
        if (before > 0) ::munmap(wide, before);
        ::munmap(wide + before + bytes, kHugePage - before);
        memory = wide + before;
        ::madvise(memory, bytes, MADV_HUGEPAGE);
      }
    } else {
      // A hole that cannot be filled later would be a SIGBUS: the disk gives its room now or never.
      const int code = ::posix_fallocate(file, file_bytes, bytes);
      if (code != 0) throw_errno("make room for pages", "cache folder", code);
      memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, file_bytes);
    }
    if (memory == MAP_FAILED) throw_errno("map pages", "cache", errno);
    slabs.emplace_back(memory, bytes);
    if (file >= 0) file_bytes += bytes;
    made += count;
    for (int64_t i = count; i-- > 0;) {
      idle.push_back(static_cast<std::byte*>(memory) + i * page_bytes);
    }
  }

  std::byte* take() {
    const std::lock_guard lock(mutex);
    if (idle.empty()) {
      if (made == capacity) {
        throw Error(ErrorKind::kLimit,
                    fmt::format("cache memory: expected at most {} bytes, got {}",
                                capacity * page_bytes, (held + 1) * page_bytes),
                    "allow more with --cache-memory");
      }
      grow();
    }
    std::byte* page = idle.back();
    idle.pop_back();
    ++held;
    return page;
  }

  void give(std::byte* page) {
    const std::lock_guard lock(mutex);
    idle.push_back(page);
    --held;
  }
};

PagePool::PagePool(int64_t page_bytes, int64_t limit, const std::filesystem::path& folder)
    : store_(std::make_shared<Store>()) {
  DROVER_CHECK(page_bytes > 0 && page_bytes % static_cast<int64_t>(kCacheLine) == 0);
  store_->page_bytes = page_bytes;
  store_->capacity = limit / page_bytes;
  if (folder.empty()) return;
  store_->file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (store_->file < 0) throw_errno("make a file for pages there", folder.native(), errno);
}

PageRef PagePool::take() {
  std::byte* page = store_->take();
  // What another conversation left there is nobody's to see. And whole vectors are read past the
  // last position: what they meet must be a number.
  std::memset(page, 0, static_cast<size_t>(store_->page_bytes));
  return PageRef(page, [store = store_](std::byte* p) { store->give(p); });
}

int64_t PagePool::page_bytes() const { return store_->page_bytes; }
int64_t PagePool::capacity() const { return store_->capacity; }
int64_t PagePool::pages() const {
  const std::lock_guard lock(store_->mutex);
  return store_->held;
}

}  // namespace drover
