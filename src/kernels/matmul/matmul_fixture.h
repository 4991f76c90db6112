// For the tests of this folder: products with all that they read, made at random, and the matrix
// unit's definition as loops.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/context.h"
#include "kernels/matmul/int8_rows.h"
#include "kernels/matmul/matmul.h"
#include "tensor/dequantize.h"
#include "tensor/float16.h"
#include "tensor/quantize.h"

namespace drover {

inline constexpr DType kQuantized[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,   DType::kQ5_0,
                                       DType::kQ5_1, DType::kQ4_K, DType::kQ5_K,   DType::kQ6_K,
                                       DType::kQ2_K, DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS,
                                       DType::kMXFP4};
inline constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

// One Context per instruction set and number of threads; making threads anew would take longer than
// the products.
inline Context& context(Isa isa, int threads = 1) {
  static std::vector<std::unique_ptr<Context>> made;
  for (auto& c : made) {
    if (c->isa == isa && c->threads.size() == threads) return *c;
  }
  return *made.emplace_back(std::make_unique<Context>(threads, isa));
}

// Every set but the plain one, against which they are held.
inline std::vector<Isa> fast_isas() {
  auto isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

// The offsets of the f16 numbers in a block.
inline std::vector<size_t> f16_fields(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ6_K:
      return {208};
    case DType::kQ2_K:
      return {80, 82};
    case DType::kQ3_K:
      return {108};
    case DType::kMXFP4:
      return {};  // its scale is a byte: see random_weights
    default:
      return {0};
  }
}

enum class Scales { kUsual, kExtreme };

// Blocks of random bits, so that every code occurs, with scales that are numbers: around 0.01, or
// zero, subnormal and the largest.
inline std::vector<std::byte> random_weights(DType type, int64_t values, std::mt19937& random,
                                             Scales scales = Scales::kUsual) {
  std::vector<std::byte> out(static_cast<size_t>(row_bytes(type, values)));
  std::normal_distribution<float> normal(0, 0.01f);
  if (!is_quantized(type)) {
    std::vector<float> x(static_cast<size_t>(values));
    for (float& v : x) v = normal(random);
    quantize_row(type, x, out.data());
    return out;
  }
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  const auto block = static_cast<size_t>(dtype_info(type).block_bytes);
  const uint16_t extremes[] = {0, 0x8000, 0x0001, 0x83ff, 0x7bff, 0xfbff, 0x0400};
  for (size_t b = 0; b < out.size(); b += block) {
    for (size_t field : f16_fields(type)) {
      const f16 d = scales == Scales::kUsual ? to_f16(normal(random)) : f16{extremes[random() % 7]};
      std::memcpy(&out[b + field], &d, sizeof(d));
    }
    if (type == DType::kMXFP4) {
      // Powers of two around 0.01; or both subnormals, 2^-127 and the largest that the sums of
      // products with 1e30 below stay finite with.
      const uint8_t far[] = {0, 1, 2, 127, 140};
      out[b] =
          static_cast<std::byte>(scales == Scales::kUsual ? 118 + random() % 4 : far[random() % 5]);
    }
  }
  return out;
}

inline std::vector<float> random_floats(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = normal(random);
  return out;
}

// One product with all that it reads. Weights lie at an odd address, x at an odd float, and there
// is room between the rows.
struct Problem {
  DType type;
  int64_t tokens, rows, cols;
  bool rounded = false;
  int64_t first = 1;
  std::vector<std::byte> weights;  // from byte `first` on
  std::vector<float> x;            // from float 1 on, rows cols + 3 apart

  Problem(DType type, int64_t tokens, int64_t rows, int64_t cols, std::mt19937& random,
          Scales scales = Scales::kUsual)
      : type(type), tokens(tokens), rows(rows), cols(cols), weights(1) {
    const auto w = random_weights(type, rows * cols, random, scales);
    weights.insert(weights.end(), w.begin(), w.end());
    x = random_floats(1 + tokens * (cols + 3), random);
  }

  // Weights on a cache line instead, where the matrix unit loads them as they lie.
  void align_weights() {
    const std::vector<std::byte> bytes(weights.begin() + first, weights.end());
    weights.assign(bytes.size() + 64, std::byte{});
    first = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(weights.data()) % 64);
    std::copy(bytes.begin(), bytes.end(), weights.begin() + first);
  }

  WeightView w() const { return {weights.data() + first, type, rows, cols}; }
  ConstMatrixView x_view() const { return {x.data() + 1, tokens, cols, cols + 3}; }
};

inline constexpr float kUntouched = -12345.0f;

inline bool takes_8_bits(Isa isa, const Problem& p) {
  return is_quantized(p.type) && !(p.rounded && takes_rounded(isa, p.type));
}

// The outputs of tokens [begin, end), rows stride floats apart, `kUntouched` between them.
inline std::vector<float> multiply(Context& context, const Problem& p, int64_t begin = 0,
                                   int64_t end = -1) {
  if (end < 0) end = p.tokens;
  const int64_t stride = p.rows + 5;
  std::vector<float> out(static_cast<size_t>((end - begin) * stride + 1), kUntouched);
  Int8Rows x8;
  MatmulJob job{.x = p.x_view(),
                .w = p.w(),
                .out = {out.data(), end - begin, p.rows, stride},
                .rounded = p.rounded};
  if (takes_8_bits(context.isa, p)) {
    quantize_rows(context, job.x, x8);
    job.x8 = &x8;
    job.x8_row = begin;
  }
  job.x.data += begin * job.x.stride;
  job.x.rows = end - begin;
  matmul(context, {&job, 1});
  return out;
}

// A number too small for a normal float is a zero of its sign to the matrix unit.
inline float flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }

// The plain twin of the matrix unit: its definition of matmul.h as loops.
inline std::vector<float> multiply_like_matrix_unit(const Problem& p) {
  const int64_t stride = p.rows + 5;
  const auto cols = static_cast<size_t>(p.cols), padded = (cols + 31) / 32 * 32;
  std::vector<float> out(static_cast<size_t>(p.tokens * stride + 1), kUntouched);
  std::vector<float> weights(padded);
  std::vector<std::vector<float>> terms[2];  // [high, low][token][k]
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (auto& term : terms) term.emplace_back(padded);
    for (size_t k = 0; k < cols; ++k) {
      const float x = p.x_view().row(t)[k], high = to_float(to_bf16(x));
      terms[0].back()[k] = flushed(high);
      if (std::isfinite(high)) terms[1].back()[k] = flushed(to_float(to_bf16(x - high)));
    }
  }
  for (int64_t n = 0; n < p.rows; ++n) {
    dequantize_row(p.type, p.w().row(n), {weights.data(), cols});
    for (float& w : weights) w = flushed(to_float(to_bf16(w)));
    for (int64_t t = 0; t < p.tokens; ++t) {
      float acc = 0;
      for (size_t first = 0; first < padded; first += 32) {
        for (int term = 0; term < (p.rounded ? 1 : 2); ++term) {
          const auto& x = terms[term][static_cast<size_t>(t)];
          float sums[2] = {0, 0};
          for (size_t k = first; k < first + 32; ++k) {
            sums[k % 2] = flushed(std::fma(weights[k], x[k], sums[k % 2]));
          }
          acc = flushed(acc + flushed(sums[0] + sums[1]));
        }
      }
      out[static_cast<size_t>(t * stride + n)] = acc;
    }
  }
  return out;
}

// Whether the matrix unit has a say in this product.
inline bool on_matrix_unit(Isa isa, const Problem& p) {
  return isa == Isa::kAmx && (p.type == DType::kBF16 || (p.rounded && takes_rounded(isa, p.type)));
}

// Equal to the bit; any NaN equals any other.
inline ::testing::AssertionResult same_bits(const std::vector<float>& expected,
                                            const std::vector<float>& got) {
  if (expected.size() != got.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
    if (std::bit_cast<uint32_t>(expected[i]) != std::bit_cast<uint32_t>(got[i])) {
      return ::testing::AssertionFailure()
             << "index " << i << ": expected " << expected[i] << ", got " << got[i];
    }
  }
  return ::testing::AssertionSuccess();
}

inline void expect_all_isas_agree(const Problem& p, const std::string& what) {
  const auto expected = multiply(context(Isa::kPlain), p);
  const int64_t stride = p.rows + 5;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool between = static_cast<int64_t>(i) % stride >= p.rows || i + 1 == expected.size();
    ASSERT_EQ(expected[i] == kUntouched, between) << "plain, index " << i << ", " << what;
  }
  for (Isa isa : fast_isas()) {
    const auto wanted = on_matrix_unit(isa, p) ? multiply_like_matrix_unit(p) : expected;
    ASSERT_TRUE(same_bits(wanted, multiply(context(isa), p)))
        << isa_name(isa) << ' ' << dtype_name(p.type) << " T=" << p.tokens << " N=" << p.rows
        << " K=" << p.cols << ", " << what;
  }
}

}  // namespace drover
