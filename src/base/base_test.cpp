#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/file_writer.h"
#include "base/huge_pages.h"
#include "base/mapped_file.h"
#include "base/threads.h"

namespace drover {
namespace {

TEST(Error, SaysMessageAndHint) {
  const Error error(ErrorKind::kBadData, "x: expected 1, got 2", "try 1");
  EXPECT_STREQ(error.what(), "x: expected 1, got 2 (hint: try 1)");
  EXPECT_EQ(exit_code(error.kind()), 65);
}

TEST(Printable, EscapesControlAndBrokenBytes) {
  EXPECT_EQ(printable("a\x1b[31m\xff\xc3\xa9"), "a\\x1b[31m\\xff\xc3\xa9");
  EXPECT_EQ(printable("\xc2\x9b"), "\\xc2\\x9b");  // C1 control
  EXPECT_EQ(printable("abcdef", 3), "abc...");
  EXPECT_EQ(printable("\xf0\x9f"), "\\xf0\\x9f");  // cut short
}

TEST(Checked, OverflowIsNothing) {
  EXPECT_EQ(checked_mul(1ull << 32, 1ull << 31), 1ull << 63);
  EXPECT_FALSE(checked_mul(1ull << 32, 1ull << 32));
  EXPECT_FALSE(checked_add(~0ull, 1));
}

TEST(ByteReader, NeverReadsPastTheEnd) {
  const std::byte bytes[5] = {std::byte{1}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{7}};
  ByteReader reader(bytes, "five");
  EXPECT_EQ(reader.scalar<uint32_t>("count"), 1u);
  EXPECT_THROW(reader.take(~0ull, "huge"), Error);
  EXPECT_THROW(reader.scalar<uint16_t>("tail"), Error);
  EXPECT_EQ(reader.scalar<uint8_t>("tail"), 7);
}

TEST(MappedFile, MapsWhatWasWrittenAndRefusesFolders) {
  const auto path = std::filesystem::temp_directory_path() / "drover_base_test.bin";
  write_file(path, "hello");
  MappedFile file(path);
  ASSERT_EQ(file.bytes().size(), 5u);
  EXPECT_EQ(static_cast<char>(file.bytes()[4]), 'o');
  EXPECT_EQ(read_file(path, 5), "hello");
  EXPECT_THROW(read_file(path, 4), Error);
  std::filesystem::remove(path);
  EXPECT_THROW(MappedFile("/"), Error);
  try {
    MappedFile missing("no/such/file");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
  }
}

TEST(FileWriter, AnAbandonedFileLeavesTheOldOne) {
  const auto path = std::filesystem::temp_directory_path() / "drover_base_test_writer.bin";
  write_file(path, "old");
  {
    FileWriter file(path);
    file.write("new, but never finished");
  }
  EXPECT_EQ(read_file(path, 100), "old");
  EXPECT_FALSE(std::filesystem::exists(path.string() + ".partial"));
  std::filesystem::remove(path);
}

TEST(ThreadPool, RunsEveryTaskOnceOnAnyNumberOfThreads) {
  for (int threads : {1, 2, 4, 7}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> hits(round);
      pool.run(round, [&](int64_t task, int worker) {
        EXPECT_LT(worker, threads);
        ++hits[task];
      });
      for (auto& hit : hits) EXPECT_EQ(hit, 1);
    }
  }
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.run(100,
                        [](int64_t task, int) {
                          if (task == 17) throw_error(ErrorKind::kLimit, "seventeen");
                        }),
               Error);
  std::atomic<int> sum = 0;
  pool.run(10, [&](int64_t task, int) { sum += static_cast<int>(task); });
  EXPECT_EQ(sum, 45);
}

// Exits with 7 when the error is the right one. For a child process, since the limit is for a whole
// process: 1 GB of addresses is room for some hundred stacks.
[[noreturn]] void start_more_threads_than_fit() {
  const rlimit limit{rlim_t{1} << 30, rlim_t{1} << 30};
  setrlimit(RLIMIT_AS, &limit);
  try {
    ThreadPool pool(1024);
  } catch (const Error& error) {
    std::_Exit(error.kind() == ErrorKind::kLimit ? 7 : 8);
  }
  std::_Exit(9);
}

TEST(ThreadPool, WhenThreadsCannotStartItSaysSoAndEndsThoseThatDid) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the address sanitizer itself needs more addresses than the limit leaves";
#endif
  EXPECT_EXIT(start_more_threads_than_fit(), ::testing::ExitedWithCode(7), "");
}

TEST(ThreadPool, RefusesSillySizes) {
  EXPECT_THROW(ThreadPool(0), Error);
  EXPECT_THROW(ThreadPool(100000), Error);
}

// Sizes around whole small and huge pages; whether they are granted does not show.
TEST(HugePages, AnArrayInThemKeepsWhatItHoldsUntilItGrows) {
  for (const size_t bytes : {1, 4095, 4097, (2 << 20) - 1, (4 << 20) + 1, 8 << 20}) {
    AlignedArray<uint8_t> array;
    reserve_huge(array, bytes);
    ASSERT_EQ(array.size(), bytes);
    for (size_t i = 0; i < bytes; ++i) array[i] = static_cast<uint8_t>(i * 31);
    prefer_huge_pages(array.data(), bytes);
    reserve_huge(array, bytes / 2);
    ASSERT_EQ(array.size(), bytes);
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; ++i) wrong += array[i] != static_cast<uint8_t>(i * 31);
    EXPECT_EQ(wrong, 0u) << bytes;
    reserve_huge(array, bytes + 1);
    EXPECT_EQ(array.size(), bytes + 1);
  }
  prefer_huge_pages(nullptr, 0);
}

}  // namespace
}  // namespace drover
