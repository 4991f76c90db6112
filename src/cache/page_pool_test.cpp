#include "cache/page_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <thread>

#include "base/aligned.h"
#include "base/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;

constexpr int64_t kBytes = 4096 + 64;  // not a multiple of the system's pages

bool all(const PageRef& page, std::byte value, int64_t bytes = kBytes) {
  const std::span content(page.get(), static_cast<size_t>(bytes));
  return std::all_of(content.begin(), content.end(), [&](std::byte b) { return b == value; });
}

void fill(const PageRef& page, int value, int64_t bytes = kBytes) {
  std::memset(page.get(), value, static_cast<size_t>(bytes));
}

// The same promises in memory and in a file.
class Pool : public ::testing::TestWithParam<bool> {
 protected:
  PagePool pool(int64_t limit, int64_t bytes = kBytes) const {
    return PagePool(bytes, limit, GetParam() ? folder_.path() : std::filesystem::path());
  }
  testing::TempFolder folder_;
};

TEST_P(Pool, GivesPagesOfZerosOnCacheLinesAlsoWhenTheyWereUsedBefore) {
  PagePool pages = pool(3 * kBytes);
  for (int round = 0; round < 3; ++round) {
    std::vector<PageRef> held;
    for (int i = 0; i < 3; ++i) {
      held.push_back(pages.take());
      EXPECT_TRUE(all(held.back(), std::byte{0})) << "round " << round << ", page " << i;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(held.back().get()) % kCacheLine, 0u);
      fill(held.back(), 0xff);
    }
    EXPECT_EQ(pages.pages(), 3);
  }
  EXPECT_EQ(pages.pages(), 0);
}

TEST_P(Pool, RefusesWhatIsOverItsLimitAndSaysTheNumbers) {
  // A part of a page is none.
  PagePool pages = pool(2 * kBytes + kBytes / 2);
  EXPECT_EQ(pages.capacity(), 2);
  PageRef one = pages.take(), two = pages.take();
  EXPECT_EQ(pages.bytes(), 2 * kBytes);
  expect_error(ErrorKind::kLimit,
               fmt::format("expected at most {} bytes, got {}", 2 * kBytes, 3 * kBytes),
               [&] { pages.take(); });
  EXPECT_EQ(pages.pages(), 2);
  // What one gives back another can have; a second holder holds it too.
  const PageRef also = one;
  one.reset();
  expect_error(ErrorKind::kLimit, "cache memory", [&] { pages.take(); });
  two.reset();
  EXPECT_NE(pages.take(), nullptr);
  PagePool none = pool(kBytes - 1);
  EXPECT_EQ(none.capacity(), 0);
  expect_error(ErrorKind::kLimit, "expected at most 0 bytes", [&] { none.take(); });
}

// Several stretches of memory, the last one cut by the limit.
TEST_P(Pool, NoTwoPagesShareMemory) {
  constexpr int64_t kLarge = int64_t{1} << 20;
  constexpr int kPages = 75;  // 32 to a stretch
  PagePool pages = pool(kPages * kLarge, kLarge);
  std::vector<PageRef> held;
  for (int i = 0; i < kPages; ++i) {
    held.push_back(pages.take());
    fill(held.back(), i + 1, kLarge);
  }
  for (int i = 0; i < kPages; ++i) {
    EXPECT_TRUE(all(held[static_cast<size_t>(i)], static_cast<std::byte>(i + 1), kLarge)) << i;
  }
  expect_error(ErrorKind::kLimit, "cache memory", [&] { pages.take(); });
}

TEST_P(Pool, APageLargerThanAStretchIsAsGood) {
  constexpr int64_t kLarge = int64_t{33} << 20;
  PagePool pages = pool(PagePool::kNoLimit, kLarge);
  const PageRef a = pages.take(), b = pages.take();
  fill(a, 1, kLarge);
  EXPECT_TRUE(all(b, std::byte{0}, kLarge));
}

TEST_P(Pool, PagesOutliveThePool) {
  PageRef page, shared;
  {
    PagePool pages = pool(PagePool::kNoLimit);
    page = pages.take();
    shared = page;
    fill(page, 7);
  }
  EXPECT_TRUE(all(page, std::byte{7}));
  page.reset();
  EXPECT_TRUE(all(shared, std::byte{7}));
}

TEST_P(Pool, CopiesOfAPoolAreThePoolItself) {
  PagePool pages = pool(2 * kBytes);
  PagePool other = pages;
  const PageRef a = pages.take(), b = other.take();
  EXPECT_EQ(pages.pages(), 2);
  expect_error(ErrorKind::kLimit, "cache memory", [&] { other.take(); });
}

// Each of four threads takes, marks, looks and gives back.
TEST_P(Pool, ServesManyThreads) {
  constexpr int kThreads = 4, kEach = 16;
  PagePool pages = pool(kThreads * kEach * kBytes);
  std::vector<std::vector<PageRef>> left(kThreads);
  std::vector<int> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      auto& mine = left[static_cast<size_t>(t)];
      for (int i = 0; i < 2000; ++i) {
        if (mine.size() == kEach || (!mine.empty() && random() % 2 == 0)) {
          std::swap(mine[random() % mine.size()], mine.back());
          wrong[static_cast<size_t>(t)] += !all(mine.back(), static_cast<std::byte>(t + 1));
          mine.pop_back();
        } else {
          mine.push_back(pages.take());
          wrong[static_cast<size_t>(t)] += !all(mine.back(), std::byte{0});
          fill(mine.back(), t + 1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t held = 0;
  for (int t = 0; t < kThreads; ++t) {
    EXPECT_EQ(wrong[static_cast<size_t>(t)], 0) << "thread " << t;
    held += left[static_cast<size_t>(t)].size();
  }
  EXPECT_EQ(pages.pages(), static_cast<int64_t>(held));
  left.clear();
  EXPECT_EQ(pages.pages(), 0);
}

INSTANTIATE_TEST_SUITE_P(InMemoryAndInAFile, Pool, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "file" : "memory"; });

TEST(PagePoolFile, HasNoNameAndIsGoneWithThePool) {
  const testing::TempFolder folder;
  const PagePool pages(kBytes, PagePool::kNoLimit, folder.path());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(PagePoolFile, AFolderThatIsNotThereOrNoneOrClosedIsAnErrorWithItsName) {
  const testing::TempFolder folder;
  expect_error(ErrorKind::kNotFound, "missing",
               [&] { PagePool(kBytes, kBytes, folder / "missing"); });
  const auto file = folder.write("file", "x");
  expect_error(ErrorKind::kNotFound, file.string(), [&] { PagePool(kBytes, kBytes, file); });
  if (::geteuid() == 0) GTEST_SKIP() << "nothing is closed to root";
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_read);
  expect_error(ErrorKind::kPermission, folder.path().string(),
               [&] { PagePool(kBytes, kBytes, folder.path()); });
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

// More than any disk has, in one page: refused when the page is wanted, and not with a signal.
TEST(PagePoolFile, ADiskThatIsFullIsAnErrorAndNoSignal) {
  const testing::TempFolder folder;
  PagePool pages(int64_t{1} << 50, PagePool::kNoLimit, folder.path());
  expect_error(ErrorKind::kCannotWrite, "cache folder", [&] { pages.take(); });
  EXPECT_EQ(pages.pages(), 0);
}

}  // namespace
}  // namespace drover
