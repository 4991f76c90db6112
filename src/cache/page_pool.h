// Memory for the pages of many conversations, all of one size, under one limit.
//
// A page is shared by whoever holds it and comes back to its pool with the last of them, on any
// thread. Pages come from large stretches of memory that the system is asked to map in huge pages,
// or from a file: then the system writes what is cold behind and reads it again when it is wanted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace drover {

// Keeps the page alive. Null: no page.
using PageRef = std::shared_ptr<std::byte>;

class PagePool {
 public:
  static constexpr int64_t kNoLimit = INT64_MAX;

  // Pages of `page_bytes` bytes, at most `limit` bytes of them together. With a folder, they lie in
  // a file there that has no name and is gone with the pool; throws kCannotWrite and its kin when
  // that cannot be made.
  PagePool(int64_t page_bytes, int64_t limit, const std::filesystem::path& folder = {});

  // A page of zeros on a cache line. Throws kLimit when the limit is reached, kCannotWrite when the
  // disk is full.
  PageRef take();

  int64_t page_bytes() const;
  int64_t pages() const;     // that somebody holds
  int64_t capacity() const;  // pages that there can be
  int64_t bytes() const { return pages() * page_bytes(); }

 private:
  struct Store;
  std::shared_ptr<Store> store_;  // shared with the pages, which may outlive the pool
};

}  // namespace drover
