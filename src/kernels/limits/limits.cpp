#include "kernels/limits/limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>

#include "base/error.h"
#include "kernels/limits/limits_kernels.h"

namespace drover {
namespace {

LimitKernels kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return limit_kernels_amx();
  if (isa == Isa::kAvx512) return limit_kernels_avx512();
  if (isa == Isa::kAvxVnni) return limit_kernels_avxvnni();
  if (isa == Isa::kAvx2) return limit_kernels_avx2();
#endif
  static_cast<void>(isa);
  return limit_kernels_plain();
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Operations per second of all threads together. body(rounds, worker) does `operations` each round.
double rate(Context& context, int64_t operations,
            const std::function<void(int64_t rounds, int worker)>& body) {
  const int threads = context.threads.size();
  const auto run = [&](int64_t rounds) {
    return seconds_of(
        [&] { context.threads.run(threads, [&](int64_t, int worker) { body(rounds, worker); }); });
  };
  // Long enough that starting the threads does not show.
  int64_t rounds = 1000;
  while (run(rounds) < 0.02) rounds *= 2;
  double best = run(rounds);
  for (int i = 0; i < 5; ++i) best = std::min(best, run(rounds));
  return static_cast<double>(operations) * static_cast<double>(rounds) * threads / best;
}

int64_t free_memory() {
  std::ifstream info("/proc/meminfo");
  std::string line;
  while (std::getline(info, line)) {
    if (line.starts_with("MemAvailable:")) return std::stoll(line.substr(13)) * 1024;
  }
  return int64_t{1} << 30;
}

double bandwidth(Context& context, const LimitKernels& kernels) {
  const int threads = context.threads.size();
  constexpr int64_t kPiece = int64_t{1} << 20;
  const int64_t wanted = std::max<int64_t>(4 * largest_cache(), int64_t{256} << 20);
  const int64_t pieces = std::max<int64_t>(std::min(wanted, free_memory() / 4) / kPiece, threads);
  if (pieces * kPiece < 2 * largest_cache()) {
    throw Error(
        ErrorKind::kLimit,
        fmt::format("bandwidth: expected {} MB of free memory, to read beyond a cache of {} "
                    "MB, got {} MB",
                    8 * largest_cache() >> 20, largest_cache() >> 20, free_memory() >> 20),
        "end other programs, or give this one more memory");
  }
  AlignedArray<std::byte> buffer(static_cast<size_t>(pieces * kPiece));
  // Pages come to be where their reader is; and pages of zeros might all be one.
  const auto each_piece = [&](const std::function<void(std::byte*, int)>& body) {
    context.threads.run(threads, [&](int64_t task, int worker) {
      const int64_t end = pieces * (task + 1) / threads;
      for (int64_t p = pieces * task / threads; p < end; ++p) {
        body(buffer.data() + p * kPiece, worker);
      }
    });
  };
  each_piece([](std::byte* piece, int) { std::memset(piece, 1, kPiece); });
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double seconds = seconds_of([&] {
      each_piece([&](std::byte* piece, int worker) {
        *context.scratch<uint64_t>(worker, 1) = kernels.read(piece, kPiece);
      });
    });
    best = std::max(best, static_cast<double>(pieces * kPiece) / seconds);
  }
  return best;
}

}  // namespace

int64_t largest_cache() {
  int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) +
                       "/size");
    int64_t size = 0;
    char unit = 0;
    if (!(file >> size)) break;
    file >> unit;
    if (unit == 'K') size <<= 10;
    if (unit == 'M') size <<= 20;
    largest = std::max(largest, size);
  }
  return largest;
}

MachineLimits measure_limits(Context& context) {
  const LimitKernels kernels = kernels_of(context.isa);
  MachineLimits limits{.threads = context.threads.size()};
  // What the loops find is kept, so that they are kept.
  limits.int8_rate = rate(context, kernels.int8_operations, [&](int64_t rounds, int worker) {
    *context.scratch<int32_t>(worker, 1) = kernels.int8(rounds, 1);
  });
  limits.float_rate = rate(context, kernels.float_operations, [&](int64_t rounds, int worker) {
    *context.scratch<float>(worker, 1) = kernels.floats(rounds, 0.5f);
  });
  if (kernels.bf16) {
    limits.bf16_rate = rate(context, kernels.bf16_operations, [&](int64_t rounds, int worker) {
      *context.scratch<float>(worker, 1) = kernels.bf16(rounds, 1);
    });
  }
  limits.bandwidth = bandwidth(context, kernels);
  return limits;
}

}  // namespace drover
