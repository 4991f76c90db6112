// How long a context of ten million tokens takes to write and to open:
//   context_file_bench FILE [bf16]
// One global layer of 2 heads of 64, int8 (2.7 GB) or bf16 (5.4 GB), and three chunked ones of 512
// tokens. FILE is removed afterwards. Not run by the tests.
#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <random>

#include "base/aligned.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "cache/context_file.h"

namespace drover {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int run(const std::filesystem::path& path, DType type) {
  constexpr int64_t kTokens = 10'000'000;
  const ContextIdentity identity{{},
                                 {},
                                 4096,
                                 {.kv_heads = 2,
                                  .head_dim = 64,
                                  .chunked = {true, true, true, false},
                                  .chunk = 512,
                                  .type = type}};
  KvPages layout;
  layout.type = type;
  layout.kv_heads = 2;
  layout.head_dim = 64;
  const auto page_bytes = static_cast<size_t>(layout.page_bytes());

  // Pages for 256 MiB, over and over: more than the processor's caches hold.
  std::mt19937_64 random(1);
  AlignedArray<std::byte> memory((size_t{256} << 20) / page_bytes * page_bytes);
  for (size_t i = 0; i + 8 <= memory.size(); i += 8) {
    const uint64_t value = random();
    std::memcpy(memory.data() + i, &value, sizeof(value));
  }
  std::vector<int32_t> tokens(kTokens);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 4096);
  std::vector<const std::byte*> pages;
  for (int64_t p = 0; p * kPageTokens < kTokens; ++p) {
    pages.push_back(memory.data() +
                    static_cast<size_t>(p) % (memory.size() / page_bytes) * page_bytes);
  }
  const PageList chunk = PageList(pages).first(2);
  const std::vector<PageList> lists = {chunk, chunk, chunk, pages};

  auto start = std::chrono::steady_clock::now();
  uint32_t sum = 0;
  for (const std::byte* page : pages) sum ^= crc32c({page, page_bytes});
  const double gigabytes = static_cast<double>(pages.size() * page_bytes) / 1e9;
  fmt::print("checksums alone, one thread: {:.1f} GB/s ({:08x})\n",
             gigabytes / seconds_since(start), sum);

  ThreadPool threads(physical_cores());
  start = std::chrono::steady_clock::now();
  const ContextSaved saved = save_context(path, identity, {tokens}, lists, threads);
  fmt::print("written and flushed: {:.2f} GB in {:.2f} s\n",
             static_cast<double>(saved.written) / 1e9, seconds_since(start));
  for (const int count : {1, physical_cores(), physical_cores()}) {
    ThreadPool some(count);
    start = std::chrono::steady_clock::now();
    const auto file = ContextFile::open(path, identity, some);
    fmt::print("opened and verified, {} threads: {:.2f} s\n", count, seconds_since(start));
  }
  // One more token: the last page, the chunk's, its index.
  tokens.push_back(1);
  start = std::chrono::steady_clock::now();
  const ContextSaved again = save_context(path, identity, {tokens}, lists, threads);
  fmt::print("one more token: {:.2f} MB in {:.2f} s, verifying what is kept\n",
             static_cast<double>(again.written) / 1e6, seconds_since(start));
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  fmt::print("most memory of ours: {:.0f} MB, of which {:.0f} are the bench's\n",
             static_cast<double>(usage.ru_maxrss) / 1e3,
             static_cast<double>(memory.size() + tokens.size() * 4) / 1e6);
  std::filesystem::remove(path);
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    fmt::print(stderr, "usage: context_file_bench FILE [bf16]\n");
    return 2;
  }
  try {
    return drover::run(argv[1], argc == 3 ? drover::DType::kBF16 : drover::DType::kI8);
  } catch (const drover::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
