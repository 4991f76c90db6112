#include "kernels/limits/limits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/limits/limits_kernels.h"
#include "tests/support/sanitized.h"

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

// How fast is the machine's business; that it is something is ours.
TEST(Limits, EveryInstructionSetMeasuresSomething) {
  if (testing::kSanitized) GTEST_SKIP() << "it multiplies registers; what it reads is tested below";
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    const MachineLimits limits = measure_limits(context);
    EXPECT_EQ(limits.threads, 2);
    for (const double rate : {limits.bandwidth, limits.int8_rate, limits.float_rate}) {
      EXPECT_TRUE(std::isfinite(rate) && rate > 1e6) << isa_name(isa) << ": " << rate;
    }
    if (isa == Isa::kAmx) {
      EXPECT_TRUE(std::isfinite(limits.bf16_rate) && limits.bf16_rate > 1e6) << limits.bf16_rate;
    } else {
      EXPECT_EQ(limits.bf16_rate, 0) << isa_name(isa);
    }
  }
}

TEST(Limits, ReadingDependsOnEveryByte) {
  constexpr size_t kBytes = 4096;
  AlignedArray<std::byte> data(kBytes);
  for (const Isa isa : available_isas()) {
    const LimitKernels kernels = kernels_of(isa);
    for (size_t i = 0; i < kBytes; ++i) data[i] = static_cast<std::byte>(i * 37);
    const uint64_t before = kernels.read(data.data(), kBytes);
    for (size_t i = 0; i < kBytes; ++i) {
      data[i] ^= std::byte{1};
      ASSERT_NE(kernels.read(data.data(), kBytes), before) << isa_name(isa) << ", byte " << i;
      data[i] ^= std::byte{1};
    }
  }
}

TEST(Limits, TheCachesOfThisMachineAreKnownOrSaidNotToBe) {
  const int64_t bytes = largest_cache();
  EXPECT_TRUE(bytes == 0 || (bytes >= 32 * 1024 && bytes < int64_t{64} << 30)) << bytes;
}

}  // namespace
}  // namespace drover
