// Transposes against their definition, to the bit.
#include "kernels/transpose/transpose.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "base/aligned.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rounding/rounding.h"
#include "tensor/float16.h"

namespace drover {
namespace {

// Floats of any bits at all: ties, subnormals, infinities and every NaN among them.
struct AnyBits {
  int64_t rows, cols;
  std::vector<float> data;

  AnyBits(int64_t rows, int64_t cols, uint32_t seed)
      : rows(rows), cols(cols), data(static_cast<size_t>(1 + rows * (cols + 5))) {
    std::mt19937 random(seed);
    for (float& x : data) {
      uint32_t bits = random();
      if (random() % 4 == 0) bits = (bits & 0xffff0000) | 0x8000;  // half-way
      if (random() % 16 == 0) bits |= 0x7f800000;
      x = std::bit_cast<float>(bits);
    }
  }
  ConstMatrixView view() const { return {data.data() + 1, rows, cols, cols + 5}; }
  float at(int64_t t, int64_t n) const { return view().row(t)[n]; }
};

// What a float becomes in bf16: on Isa::kAmx one below 2^-126 a zero.
uint16_t rounded_bits(Isa isa, float x) {
  const auto sign = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16 & 0x8000);
  const bool tiny = std::abs(x) < 0x1p-126f;
  return isa == Isa::kAmx && tiny ? sign : to_bf16(x).bits;
}

constexpr int64_t kSizes[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 65, 129, 200};

// Both types of output, every number, the zeros after them, and nothing beyond.
void expect_transposed(Context& context, const AnyBits& x, int64_t length) {
  const auto size = static_cast<size_t>(x.cols * length);
  AlignedArray<uint32_t> floats(size + 1);
  AlignedArray<uint16_t> halves(size + 1);
  std::fill_n(floats.data(), size + 1, 0xabcdefu);
  std::fill_n(halves.data(), size + 1, 0xabcd);
  transpose(context, x.view(), DType::kF32, reinterpret_cast<std::byte*>(floats.data()), length);
  transpose(context, x.view(), DType::kBF16, reinterpret_cast<std::byte*>(halves.data()), length);
  for (int64_t n = 0; n < x.cols; ++n) {
    for (int64_t t = 0; t < length; ++t) {
      const auto i = static_cast<size_t>(n * length + t);
      const float expected = t < x.rows ? x.at(t, n) : 0.0f;
      ASSERT_EQ(floats[i], std::bit_cast<uint32_t>(expected))
          << isa_name(context.isa) << ", [" << x.rows << ", " << x.cols << "] at " << t << ", " << n
          << ", length " << length;
      ASSERT_EQ(halves[i], rounded_bits(context.isa, expected))
          << isa_name(context.isa) << ", [" << x.rows << ", " << x.cols << "] at " << t << ", " << n
          << ", length " << length;
    }
  }
  EXPECT_EQ(floats[size], 0xabcdefu);
  EXPECT_EQ(halves[size], 0xabcd);
}

TEST(Transpose, MovesEveryNumberToItsPlace) {
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2}) {
      Context context(threads, isa);
      for (const int64_t rows : kSizes) {
        for (const int64_t cols : kSizes) {
          const AnyBits x(rows, cols, static_cast<uint32_t>(1000 * rows + cols));
          expect_transposed(context, x, rows);
        }
      }
    }
  }
}

TEST(Transpose, PutsZerosAfterTheNumbersOfARow) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const int64_t rows : kSizes) {
      for (const int64_t cols : {1, 16, 33}) {
        const AnyBits x(rows, cols, static_cast<uint32_t>(1000 * rows + cols));
        for (const int64_t length : {rows + 1, on_lines(rows), rows + 100}) {
          expect_transposed(context, x, length);
        }
      }
    }
  }
}

// Large enough that lines are written past the caches, with columns that fill no block.
TEST(Transpose, MovesManyNumbersToTheirPlaces) {
  for (const int64_t rows : {1024, 1009}) {
    const AnyBits x(rows, 521, 1);
    for (const Isa isa : available_isas()) {
      Context context(2, isa);
      expect_transposed(context, x, on_lines(rows));
    }
  }
}

TEST(Transpose, TakesRowsOfTheirOwnLengthUnlessToldOtherwise) {
  Context context(1);
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  std::vector<float> out(6);
  transpose(context, {x.data(), 2, 3, 3}, DType::kF32, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_EQ(out, (std::vector<float>{1, 4, 2, 5, 3, 6}));
}

// What a block of rounded rows holds, as matmul_kernels.h describes the form.
uint16_t number_of(RoundedRows& rounded, int64_t row, int64_t col) {
  const std::byte* block = rounded.block(row / 32 * 32, col / 32 * 32);
  uint16_t bits;
  std::memcpy(&bits, block + row % 32 / 16 * 1024 + col % 32 / 2 * 64 + row % 16 * 4 + col % 2 * 2,
              sizeof(bits));
  return bits;
}

TEST(Transpose, IntoRoundedRowsFillsWholeBlocksUpWithZeros) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    RoundedRows rounded;
    for (const int64_t rows : {1, 2, 31, 32, 33, 64, 200, 256, 257, 300}) {
      for (const int64_t cols : {1, 15, 16, 17, 32, 40, 64, 129}) {
        const AnyBits x(rows, cols, static_cast<uint32_t>(1000 * rows + cols));
        for (const int64_t length : {rows, rows + 70}) {
          rounded.resize(cols, length);
          const auto all = static_cast<size_t>((length + 255) / 256 * rounded.panel_bytes());
          std::memset(rounded.unit(0), 0xff, all);
          transpose(context, x.view(), rounded, 0, length, /*past_caches=*/cols % 2 == 1);
          for (int64_t n = 0; n < on_lines(cols); ++n) {
            for (int64_t t = 0; t < on_lines(length); ++t) {
              const bool there = n < cols && t < rows;
              ASSERT_EQ(number_of(rounded, n, t), there ? rounded_bits(isa, x.at(t, n)) : 0)
                  << isa_name(isa) << ", [" << rows << ", " << cols << "] at " << t << ", " << n
                  << ", length " << length;
            }
          }
        }
      }
    }
  }
}

// Some rows at a time, as they come, is the same as all of them; nothing beside them is touched.
TEST(Transpose, OfSomeRowsGoesToTheirColumns) {
  constexpr int64_t kRows = 75, kCols = 40;
  const AnyBits x(kRows, kCols, 5);
  const auto part = [&](int64_t first, int64_t rows) {
    return ConstMatrixView{x.view().row(first), rows, kCols, x.view().stride};
  };
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const bool past_caches : {false, true}) {
      const int64_t length = on_lines(kRows);
      AlignedArray<uint16_t> whole(kCols * length), pieces(kCols * length);
      std::fill_n(pieces.data(), pieces.size(), 0xabcd);
      const auto bytes = [](uint16_t* p) { return reinterpret_cast<std::byte*>(p); };
      transpose(context, x.view(), DType::kBF16, bytes(whole.data()), length);
      transpose(context, part(32, 43), DType::kBF16, bytes(pieces.data() + 32), length - 32, length,
                past_caches);
      for (int64_t n = 0; n < kCols; ++n) {
        for (int64_t t = 0; t < 32; ++t) ASSERT_EQ(pieces[n * length + t], 0xabcd);
      }
      transpose(context, part(0, 32), DType::kBF16, bytes(pieces.data()), 32, length, past_caches);
      EXPECT_TRUE(std::equal(whole.data(), whole.data() + whole.size(), pieces.data()));

      RoundedRows all, some;
      all.resize(kCols, kRows);
      some.resize(kCols, kRows);
      transpose(context, x.view(), all, 0, kRows);
      transpose(context, part(32, 43), some, 32, 43, past_caches);
      transpose(context, part(0, 32), some, 0, 32, past_caches);
      for (int64_t n = 0; n < kCols; ++n) {
        for (int64_t t = 0; t < kRows; ++t) ASSERT_EQ(number_of(all, n, t), number_of(some, n, t));
      }
    }
  }
}

TEST(Transpose, IntoRoundedRowsIsWhatRoundingTheTransposeMakes) {
  if (!takes_rounded(detect_isa(), DType::kBF16)) {
    GTEST_SKIP() << "this processor has no unit for rounded rows";
  }
  Context context(2);
  for (const int64_t rows : {1, 33, 300}) {
    for (const int64_t cols : {5, 16, 40, 100}) {
      const AnyBits x(rows, cols, static_cast<uint32_t>(1000 * rows + cols));
      std::vector<float> turned(static_cast<size_t>(rows * cols));
      transpose(context, x.view(), DType::kF32, reinterpret_cast<std::byte*>(turned.data()));
      RoundedRows got, expected;
      got.resize(cols, rows);
      transpose(context, x.view(), got, 0, rows);
      expected.resize(cols, rows);
      for (int64_t n = 0; n < cols; n += RoundedRows::kGroup) {
        expected.put(
            n, {turned.data() + n * rows, std::min(RoundedRows::kGroup, cols - n), rows, rows});
      }
      for (int64_t n = 0; n < cols; n += 32) {
        for (int64_t t = 0; t < rows; t += 32) {
          ASSERT_EQ(std::memcmp(got.block(n, t), expected.block(n, t), RoundedRows::kBlockBytes), 0)
              << "[" << rows << ", " << cols << "] at " << t << ", " << n;
        }
      }
    }
  }
}

TEST(Rounding, IsToTheNearestAndBackAgainExact) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const int64_t cols : kSizes) {
      const AnyBits x(9, cols, static_cast<uint32_t>(cols));
      const auto size = static_cast<size_t>(9 * cols);
      AlignedArray<bf16> rounded(size + 1);
      AlignedArray<float> back(size);
      rounded[size].bits = 0xabcd;
      round_to_bf16(context, x.view(), rounded.data());
      widen_bf16(context, rounded.data(), {back.data(), 9, cols, cols});
      for (size_t i = 0; i < size; ++i) {
        const float from = x.at(static_cast<int64_t>(i) / cols, static_cast<int64_t>(i) % cols);
        ASSERT_EQ(rounded[i].bits, rounded_bits(isa, from)) << isa_name(isa) << ", " << cols;
        ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), uint32_t{rounded[i].bits} << 16);
      }
      EXPECT_EQ(rounded[size].bits, 0xabcd);
    }
  }
}

TEST(Transpose, OfNothingIsNothing) {
  Context context(2);
  std::byte untouched{7};
  RoundedRows rounded;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}, {0, 0}}) {
    const ConstMatrixView x(nullptr, rows, cols, cols);
    transpose(context, x, DType::kF32, &untouched);
    transpose(context, x, DType::kBF16, &untouched);
    rounded.resize(cols, rows);
    transpose(context, x, rounded, 0, rows);
    EXPECT_EQ(untouched, std::byte{7});
  }
}

}  // namespace
}  // namespace drover
