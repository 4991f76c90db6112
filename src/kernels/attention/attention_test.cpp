// Attention against its contract to the bit, against the formula in double precision, and against
// itself: on every instruction set, however it is cut, whatever stands beside it.
#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tensor/float16.h"
#include "tests/support/sanitized.h"

namespace drover {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kI8};
// Around whole vectors, and panels of 64 with every remainder of 16: 16, 32, 48 and 0.
constexpr int64_t kDims[] = {1, 15, 16, 17, 33, 48, 63, 64, 65, 112, 128, 256, 512};
constexpr double kUnit = 0x1p-24;  // half a unit in the last place of a float

std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

// Every set but the plain one, against which they are held.
std::vector<Isa> fast_isas() {
  auto isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

// One per set, kept: making one costs more than many a run.
Context& context(Isa isa) {
  static std::vector<std::unique_ptr<Context>> made;
  for (auto& c : made) {
    if (c->isa == isa) return *c;
  }
  return *made.emplace_back(std::make_unique<Context>(1, isa));
}

::testing::AssertionResult same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) == 0) continue;
    return ::testing::AssertionFailure() << "at " << i << ": " << a[i] << " and " << b[i];
  }
  return ::testing::AssertionSuccess();
}

struct Shape {
  int64_t kv_heads, group, d;
  int64_t q_cols() const { return kv_heads * group * d; }
  int64_t kv_cols() const { return kv_heads * d; }

  friend std::ostream& operator<<(std::ostream& out, const Shape& s) {
    return out << s.kv_heads << " kv heads, group " << s.group << ", d " << s.d;
  }
};

// A sequence of random keys and values in a cache, and random queries of its last tokens.
struct Sequence {
  Shape shape;
  DType type;
  int64_t positions;
  HeadLayout layout;
  std::vector<float> keys, values;  // [positions, K * d], as they were before they were stored
  std::vector<AlignedArray<std::byte>> memory;
  std::vector<std::byte*> pages;
  std::vector<AlignedArray<std::byte>> bounds_memory;
  std::vector<std::byte*> bounds;

  Sequence(Shape shape, DType type, int64_t positions, uint32_t seed = 1)
      : shape(shape),
        type(type),
        positions(positions),
        layout(KvPages{nullptr, type, shape.kv_heads, shape.d}.head()),
        keys(random_floats(positions * shape.kv_cols(), seed)),
        values(random_floats(positions * shape.kv_cols(), seed + 1)) {
    for (int64_t p = 0; p < positions; p += kPageTokens) {
      memory.emplace_back(static_cast<size_t>(view().page_bytes()));
      // What was never stored is a NaN in every type.
      std::memset(memory.back().data(), 0xff, memory.back().size());
      pages.push_back(memory.back().data());
    }
  }

  KvPages view() const { return {pages.data(), type, shape.kv_heads, shape.d, bounds.data()}; }

  // Stores tokens [first, first + n).
  void store(Context& context, int64_t first, int64_t n) {
    const int64_t cols = shape.kv_cols();
    const KvStoreJob job{view(),
                         first,
                         {keys.data() + first * cols, n, cols, cols},
                         {values.data() + first * cols, n, cols, cols}};
    store_kv(context, {&job, 1});
  }
  void store(Context& context) { store(context, 0, positions); }

  // Bounds of the full pages; what is not bounded is a NaN.
  void bound(Context& context) {
    const int64_t full = positions / kPageTokens;
    for (int64_t p = 0; p < full; p += kSpanPages) {
      bounds_memory.emplace_back(static_cast<size_t>(view().bounds_bytes()));
      std::memset(bounds_memory.back().data(), 0xff, bounds_memory.back().size());
      bounds.push_back(bounds_memory.back().data());
    }
    const BoundKeysJob job{view(), 0, full};
    bound_keys(context, {&job, 1});
  }
  float bound(bool is_largest, int64_t page, int64_t kv_head, int64_t i) const {
    const auto* span = reinterpret_cast<const bf16*>(bounds[page / kSpanPages]);
    return to_float(
        span[((kv_head * shape.d + i) * 2 + is_largest) * kSpanPages + page % kSpanPages]);
  }

  // A stored number, found by the layout that attention.h promises; for int8 the integer.
  float element(bool is_value, int64_t position, int64_t kv_head, int64_t i) const {
    const std::byte* head = pages[position / kPageTokens] + kv_head * layout.bytes;
    const int64_t slot = position % kPageTokens, panel = i / 64 * 64;
    const int64_t width = std::min<int64_t>(64, layout.padded_dim - panel);
    const int64_t index = is_value ? panel * kPageTokens + slot * width + i - panel
                                   : slot / 64 * 64 * shape.d + i * 64 + slot % 64;
    if (is_value) head += layout.values;
    if (type == DType::kF32) return reinterpret_cast<const float*>(head)[index];
    if (type == DType::kBF16) return to_float(reinterpret_cast<const bf16*>(head)[index]);
    return reinterpret_cast<const int8_t*>(head)[index];
  }
  float scale(bool is_value, int64_t position, int64_t kv_head) const {
    if (type != DType::kI8) return 1.0f;
    const std::byte* head = pages[position / kPageTokens] + kv_head * layout.bytes;
    return reinterpret_cast<const float*>(
        head + (is_value ? layout.value_scales : layout.key_scales))[position % kPageTokens];
  }

  // The results of the last `tokens` positions, in jobs of `cut` tokens. `visits` is of the last.
  std::vector<float> attend(Context& context, const std::vector<float>& q, int64_t tokens,
                            int64_t cut = std::numeric_limits<int64_t>::max(),
                            const PageChoice* choice = nullptr,
                            PageVisits* visits = nullptr) const {
    const int64_t cols = shape.q_cols();
    std::vector<float> out(static_cast<size_t>(tokens * cols), -1.0f);
    std::vector<AttentionJob> jobs;
    for (int64_t t = 0; t < tokens; t += cut) {
      const int64_t n = std::min(cut, tokens - t);
      jobs.push_back({{q.data() + t * cols, n, cols, cols},
                      view(),
                      positions - tokens + t,
                      {out.data() + t * cols, n, cols, cols},
                      /*causal=*/true,
                      choice});
      jobs.back().visits = n == tokens - t ? visits : nullptr;
      if (n == tokens - t) break;
    }
    attention(context, jobs);
    return out;
  }

  // Of tokens that all attend to all positions.
  std::vector<float> attend_to_all(Context& context, const std::vector<float>& q, int64_t tokens,
                                   bool rounded = false) const {
    const int64_t cols = shape.q_cols();
    std::vector<float> out(static_cast<size_t>(tokens * cols), -1.0f);
    AttentionJob job = job_to_all(q, tokens, out);
    job.rounded = rounded;
    attention(context, {&job, 1});
    return out;
  }
  AttentionJob job_to_all(const std::vector<float>& q, int64_t tokens,
                          std::vector<float>& out) const {
    const int64_t cols = shape.q_cols();
    return {{q.data(), tokens, cols, cols},
            view(),
            positions - tokens,
            {out.data(), tokens, cols, cols},
            /*causal=*/false};
  }
  // Of tokens each of which is alone at the last position.
  std::vector<float> attend_alone(Context& context, const std::vector<float>& q,
                                  int64_t tokens) const {
    const int64_t cols = shape.q_cols();
    std::vector<float> out(static_cast<size_t>(tokens * cols), -1.0f);
    std::vector<AttentionJob> jobs;
    for (int64_t t = 0; t < tokens; ++t) {
      jobs.push_back({{q.data() + t * cols, 1, cols, cols},
                      view(),
                      positions - 1,
                      {out.data() + t * cols, 1, cols, cols}});
    }
    attention(context, jobs);
    return out;
  }
};

// e(x) of the contract.
float contract_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shift = 12582912.0f + 127.0f;
  const float shifted = std::fma(x, 1.44269504088896341f, shift), n = shifted - shift;
  const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, x));
  float p = 0.001392618359f;
  for (const float c : {0.008363179053f, 0.04166655462f, 0.1666657699f, 0.5f, 1.0f, 1.0f}) {
    p = std::fma(p, r, c);
  }
  return p * std::ldexp(1.0f, static_cast<int>(n));
}

TEST(Attention, ExponentialIsWithinTwoUlp) {
  for (float x = -87.0f; x <= 0; x += 0.0037f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT_NEAR(contract_exp(x), expected, 4 * kUnit * expected) << x;
  }
  EXPECT_EQ(contract_exp(0.0f), 1.0f);
  EXPECT_EQ(contract_exp(-INFINITY), contract_exp(-87.0f));
  EXPECT_TRUE(std::isnan(contract_exp(NAN)));
}

// The 16-bit form of a vector; returns the unit.
float contract_rounded(const std::vector<float>& x, std::vector<int32_t>& numbers) {
  float most = 0;
  bool is_finite = true;
  for (const float one : x) {
    most = std::max(most, std::fabs(one));
    is_finite = is_finite && std::isfinite(one);
  }
  numbers.assign(x.size(), 0);
  if (!is_finite) return NAN;
  if (most < 0x1p-110f) return 0;
  for (size_t i = 0; i < x.size(); ++i) {
    numbers[i] = static_cast<int32_t>(std::nearbyint(x[i] * (32639 / most)));
  }
  return most / 32639;
}

// q' of the contract; of int8 pages as its 16-bit form is read back.
std::vector<float> contract_query(const Sequence& s, const float* q) {
  const float c = 1.0f / std::sqrt(static_cast<float>(s.shape.d));
  std::vector<float> out(q, q + s.shape.d);
  for (float& x : out) x *= c;
  if (s.type == DType::kI8) {
    std::vector<int32_t> numbers;
    const float unit = contract_rounded(out, numbers);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(numbers[i]) * unit;
  }
  return out;
}

// What the matrix unit makes of x and w, as matmul.h has it for rounded jobs.
float unit_sum(std::vector<float> x, std::vector<float> w) {
  const auto flushed = [](float v) {
    return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v;
  };
  x.resize((x.size() + 31) / 32 * 32);
  w.resize(x.size());
  float acc = 0;
  for (size_t first = 0; first < x.size(); first += 32) {
    float sums[2] = {0, 0};
    for (size_t k = first; k < first + 32; ++k) {
      const float high = to_float(to_bf16(x[k]));
      sums[k % 2] = flushed(std::fma(flushed(w[k]), flushed(high), sums[k % 2]));
    }
    acc = flushed(acc + flushed(sums[0] + sums[1]));
  }
  return acc;
}

// The scores of n positions from `begin` on.
std::vector<float> contract_scores(const Sequence& s, const float* q, int64_t kv_head,
                                   int64_t begin, int64_t n, bool by_unit = false) {
  const int64_t d = s.shape.d;
  const float c = 1.0f / std::sqrt(static_cast<float>(d));
  std::vector<float> query(q, q + d), out(static_cast<size_t>(n));
  for (float& x : query) x *= c;
  std::vector<int32_t> numbers;
  const float unit = contract_rounded(query, numbers);
  for (int64_t p = 0; p < n; ++p) {
    std::vector<float> key(d);
    int64_t dot = 0;
    for (int64_t i = 0; i < d; ++i) {
      key[i] = s.element(false, begin + p, kv_head, i);
      if (s.type == DType::kI8) dot += numbers[i] * static_cast<int64_t>(key[i]);
      if (s.type != DType::kI8) out[p] = std::fma(query[i], key[i], out[p]);
    }
    if (by_unit) out[p] = unit_sum(query, key);
    if (s.type == DType::kI8) {
      out[p] = static_cast<float>(dot) * unit * s.scale(false, begin + p, kv_head);
    }
  }
  return out;
}

// One row of one head as attention.h says it, word for word: over all pages, or as if those named
// were all; with the sums of the matrix unit or without.
std::vector<float> contract_row(const Sequence& s, const float* q, int64_t kv_head, int64_t seen,
                                std::vector<int64_t> pages = {}, bool by_unit = false) {
  if (pages.empty()) {
    for (int64_t p = 0; p * kPageTokens < seen; ++p) pages.push_back(p);
  }
  const int64_t d = s.shape.d;
  struct State {
    float m, l;
    std::vector<float> o;
  };
  const auto merge = [](State& all, const State& one) {
    const float m = std::max(one.m, all.m);
    const float a = contract_exp(one.m - m), b = contract_exp(all.m - m);
    for (size_t i = 0; i < all.o.size(); ++i) all.o[i] = std::fma(one.o[i], a, all.o[i] * b);
    all.l = std::fma(one.l, a, all.l * b);
    all.m = m;
  };
  State all, span;
  const auto end_span = [&](size_t visited) {
    if (visited <= kSpanPages) {
      all = span;
    } else {
      merge(all, span);
    }
  };
  for (size_t k = 0; k < pages.size(); ++k) {
    const int64_t begin = pages[k] * kPageTokens, n = std::min(kPageTokens, seen - begin);
    std::vector<float> w = contract_scores(s, q, kv_head, begin, n, by_unit), o(d);
    float m = -INFINITY, lanes[16] = {};
    for (const float score : w) m = score > m ? score : m;
    for (int64_t p = 0; p < n; ++p) {
      w[p] = contract_exp(w[p] - m);
      lanes[p % 16] += w[p];
      for (int64_t i = 0; s.type != DType::kI8 && i < d; ++i) {
        o[i] = std::fma(w[p], s.element(true, begin + p, kv_head, i), o[i]);
      }
      if (s.type == DType::kI8) w[p] *= s.scale(true, begin + p, kv_head);
    }
    if (s.type == DType::kI8) {
      std::vector<int32_t> numbers;
      const float unit = contract_rounded(w, numbers);
      for (int64_t i = 0; i < d; ++i) {
        int64_t sum = 0;
        for (int64_t p = 0; p < n; ++p) {
          sum += numbers[p] * static_cast<int64_t>(s.element(true, begin + p, kv_head, i));
        }
        o[i] = static_cast<float>(sum) * unit;
      }
    }
    for (int64_t i = 0; by_unit && i < d; ++i) {
      std::vector<float> values(n);
      for (int64_t p = 0; p < n; ++p) values[p] = s.element(true, begin + p, kv_head, i);
      o[i] = unit_sum(w, values);
    }
    for (int width = 8; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    }
    const State page{m, lanes[0], o};
    if (k % kSpanPages == 0) {
      if (k > 0) end_span(k);
      span = page;
    } else {
      merge(span, page);
    }
  }
  end_span(pages.size());
  for (float& x : all.o) x /= all.l;
  return all.o;
}

TEST(Attention, IsTheContractToTheBit) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const int64_t d : kDims) {
      const Shape shape{2, 1 + d % 5, d};
      for (const int64_t positions : {1, 64, 300, 513}) {
        if (positions > 100 && d > 100) continue;  // the plain loops take seconds
        const int64_t tokens = std::min<int64_t>(positions, 4);
        Sequence s(shape, type, positions, static_cast<uint32_t>(d));
        s.store(context);
        const auto q = random_floats(tokens * shape.q_cols(), 3);
        std::vector<float> expected;
        for (int64_t row = 0; row < tokens * shape.kv_heads * shape.group; ++row) {
          const int64_t t = row / (shape.kv_heads * shape.group);
          const int64_t kv_head = row / shape.group % shape.kv_heads;
          const auto one = contract_row(s, &q[row * d], kv_head, positions - tokens + t + 1);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        EXPECT_TRUE(same_bits(s.attend(context, q, tokens), expected))
            << dtype_name(type) << ", " << shape << ", positions " << positions;
      }
    }
  }
}

// Two tokens after three spans and a bit. The second shape's pages cost so little that whole spans
// are handed out, the first one's are handed out a few pages at a time.
TEST(Attention, ManySpansAreTheContractToTheBitHoweverTheyAreCut) {
  for (const Shape shape : {Shape{1, 2, 64}, Shape{2, 1, 5}}) {
    for (const DType type : kTypes) {
      if (shape.d == 64 && type == DType::kF32) continue;  // as the others, and slow to make
      Context alone(1);
      const int64_t positions = 3 * kSpanPages * kPageTokens + kPageTokens + 1;
      Sequence s(shape, type, positions);
      s.store(alone);
      const auto q = random_floats(2 * shape.q_cols(), 25);
      std::vector<float> expected;
      for (int64_t row = 0; row < 2 * shape.kv_heads * shape.group; ++row) {
        const int64_t t = row / (shape.kv_heads * shape.group);
        const int64_t kv_head = row / shape.group % shape.kv_heads;
        const auto one = contract_row(s, &q[row * shape.d], kv_head, positions - 1 + t);
        expected.insert(expected.end(), one.begin(), one.end());
      }
      for (const Isa isa : available_isas()) {
        for (const int threads : {1, 2, 8}) {
          Context context(threads, isa);
          EXPECT_TRUE(same_bits(s.attend(context, q, 2), expected))
              << isa_name(isa) << ", " << dtype_name(type) << ", " << shape << ", " << threads
              << " threads";
        }
      }
    }
  }
}

// The same page stands at all places but the last three. With equal scores every weight is 1, and
// all sums are multiples of 256 below 2^32: exact.
TEST(Attention, PositionsMayLieBeyondTwoToThe31) {
  Context context(2);
  Sequence s({1, 1, 1}, DType::kF32, 2 * kPageTokens);
  std::fill(s.keys.begin(), s.keys.end(), 0.0f);
  std::fill_n(s.values.begin(), kPageTokens, 0.0f);
  std::fill_n(s.values.begin() + kPageTokens, kPageTokens, 0x1p22f);
  s.store(context);
  std::vector<std::byte*> pages(size_t{1} << 23, s.pages[0]);
  pages.insert(pages.end(), 3, s.pages[1]);
  KvPages view = s.view();
  view.pages = pages.data();
  const float q = 1.0f;
  float out = 0;
  const int64_t seen = (int64_t{1} << 31) + 3 * kPageTokens;
  const AttentionJob job{{&q, 1, 1, 1}, view, seen - 1, {&out, 1, 1, 1}};
  attention(context, {&job, 1});
  EXPECT_EQ(out, 3 * 256 * 0x1p22f / static_cast<float>(seen));
}

TEST(Attention, WithoutACausalLimitIsTheContractToTheBit) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const int64_t d : {1, 17, 64, 88}) {
      const Shape shape{2, 1 + d % 3, d};
      for (const int64_t positions : {1, 65, 300, 513}) {
        // From the start of the sequence, and after a past.
        for (const int64_t tokens : {positions, int64_t{7}}) {
          if (tokens > positions || tokens > 100) continue;  // the plain loops take seconds
          Sequence s(shape, type, positions, static_cast<uint32_t>(d));
          s.store(context);
          const auto q = random_floats(tokens * shape.q_cols(), 3);
          std::vector<float> expected;
          for (int64_t row = 0; row < tokens * shape.kv_heads * shape.group; ++row) {
            const int64_t kv_head = row / shape.group % shape.kv_heads;
            const auto one = contract_row(s, &q[row * d], kv_head, positions);
            expected.insert(expected.end(), one.begin(), one.end());
          }
          EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens), expected))
              << dtype_name(type) << ", " << shape << ", positions " << positions << ", tokens "
              << tokens;
        }
      }
    }
  }
}

// All products of int8 pages as large as they get, and of one sign: sums within a hundredth of
// 2^31.
TEST(Attention, TheLargestSumsOfInt8FitInto32Bits) {
  for (const Isa isa : available_isas()) {
    for (const float sign : {1.0f, -1.0f}) {
      const Shape shape{1, 2, kMaxHeadDim};
      Sequence s(shape, DType::kI8, kPageTokens);
      std::fill(s.keys.begin(), s.keys.end(), sign);
      std::fill(s.values.begin(), s.values.end(), sign);
      s.store(context(isa));
      const std::vector<float> q(static_cast<size_t>(shape.q_cols()), 1.0f);
      auto expected = contract_row(s, q.data(), 0, kPageTokens);
      EXPECT_NEAR(expected[0], sign, 1e-5f);
      expected.insert(expected.end(), expected.begin(), expected.end());
      EXPECT_TRUE(same_bits(s.attend(context(isa), q, 1), expected)) << isa_name(isa) << sign;
    }
  }
}

// What was never stored is a NaN: beyond the last position, and in the lanes that the unit fills
// up.
TEST(RoundedAttention, IsTheContractToTheBit) {
  if (detect_isa() != Isa::kAmx) GTEST_SKIP() << "this processor has no AMX";
  Context context(1);
  for (const int64_t d : {1, 16, 17, 33, 64, 88, 112, 200, 512}) {
    const Shape shape{2, 1 + d % 3, d};
    for (const int64_t positions : {1, 2, 16, 17, 33, 65, 256, 300, 513}) {
      if (positions > 100 && d > 100) continue;  // the plain loops take seconds
      for (const int64_t tokens : {int64_t{1}, std::min<int64_t>(positions, 17)}) {
        Sequence s(shape, DType::kBF16, positions, static_cast<uint32_t>(d));
        s.store(context);
        const auto q = random_floats(tokens * shape.q_cols(), 3);
        std::vector<float> expected;
        for (int64_t row = 0; row < tokens * shape.kv_heads * shape.group; ++row) {
          const int64_t kv_head = row / shape.group % shape.kv_heads;
          const auto one = contract_row(s, &q[row * d], kv_head, positions, {}, /*by_unit=*/true);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens, /*rounded=*/true), expected))
            << shape << ", positions " << positions << ", tokens " << tokens;
      }
    }
  }
}

// Around blocks of 32 rows and tiles of 384, whole or cut smaller for more threads. The last tokens
// alone see as much as all together.
TEST(RoundedAttention, DoesNotDependOnCompanyOrThreads) {
  Context alone(1);
  for (const Shape shape : {Shape{2, 1, 88}, Shape{1, 3, 20}}) {
    for (const int64_t tokens : {31, 33, 385, 577}) {
      Sequence s(shape, DType::kBF16, tokens);
      s.store(alone);
      const auto q = random_floats(tokens * shape.q_cols(), 19);
      const auto expected = s.attend_to_all(alone, q, tokens, /*rounded=*/true);
      for (const int threads : {2, 8, 32}) {
        Context context(threads);
        EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens, /*rounded=*/true), expected))
            << shape << ", tokens " << tokens << ", " << threads << " threads";
      }
      for (const int64_t last : {1, 7, 30}) {
        const std::vector<float> queries(q.end() - last * shape.q_cols(), q.end());
        EXPECT_TRUE(same_bits(s.attend_to_all(alone, queries, last, /*rounded=*/true),
                              {expected.end() - last * shape.q_cols(), expected.end()}))
            << shape << ", the last " << last << " of " << tokens;
      }
    }
  }
}

TEST(RoundedAttention, ALongPastIsSharedByThreadsWithoutATrace) {
  Context alone(1);
  const Shape shape{1, 5, 64};
  Sequence s(shape, DType::kBF16, (kSpanPages + 41) * kPageTokens + 3);
  s.store(alone);
  for (const int64_t tokens : {2, 6}) {
    const auto q = random_floats(tokens * shape.q_cols(), 21);
    const auto expected = s.attend_to_all(alone, q, tokens, /*rounded=*/true);
    for (const int threads : {2, 3, 8}) {
      Context context(threads);
      EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens, /*rounded=*/true), expected))
          << "tokens " << tokens << ", " << threads << " threads";
    }
  }
}

TEST(RoundedAttention, IsAnyOtherWhereThereIsNoMatrixUnit) {
  const Shape shape{2, 2, 24};
  Sequence s(shape, DType::kBF16, 70);
  s.store(context(Isa::kPlain));
  const auto q = random_floats(70 * shape.q_cols(), 27);
  for (const Isa isa : available_isas()) {
    const auto exact = s.attend_to_all(context(isa), q, 70);
    const auto rounded = s.attend_to_all(context(isa), q, 70, /*rounded=*/true);
    EXPECT_EQ(static_cast<bool>(same_bits(rounded, exact)), isa != Isa::kAmx) << isa_name(isa);
  }
}

// What a row holds that is no number stays in it, or in all that see it.
TEST(RoundedAttention, NumbersThatAreNoneSpoilWhatSeesThem) {
  Context context(1);
  const Shape shape{2, 1, 40};
  const int64_t tokens = 70;
  for (const float number : {NAN, INFINITY}) {
    for (const bool in_keys : {true, false}) {
      Sequence s(shape, DType::kBF16, tokens);
      (in_keys ? s.keys : s.values)[33 * shape.kv_cols() + 5] = number;
      s.store(context);
      const auto q = random_floats(tokens * shape.q_cols(), 15);
      const auto out = s.attend_to_all(context, q, tokens, /*rounded=*/true);
      for (size_t j = 0; j < out.size(); ++j) {
        const auto i = static_cast<int64_t>(j) % shape.q_cols();
        // An infinite key is the largest, or weighs nothing.
        const bool spoilt = in_keys ? i < 40 && std::isnan(number) : i == 5;
        if (in_keys && i < 40 && !std::isnan(number)) continue;
        EXPECT_EQ(!std::isfinite(out[j]), spoilt) << number << ", keys " << in_keys << ", " << j;
      }
    }
    Sequence s(shape, DType::kBF16, tokens);
    s.store(context);
    auto q = random_floats(tokens * shape.q_cols(), 15);
    const auto clean = s.attend_to_all(context, q, tokens, /*rounded=*/true);
    q[33 * shape.q_cols() + 5] = number;
    const auto out = s.attend_to_all(context, q, tokens, /*rounded=*/true);
    for (int64_t j = 0; j < static_cast<int64_t>(out.size()); ++j) {
      const bool spoilt = j / shape.q_cols() == 33 && j % shape.q_cols() < 40;
      EXPECT_TRUE(spoilt ? std::isnan(out[j]) : out[j] == clean[j]) << number << ", " << j;
    }
  }
}

TEST(Attention, MatchesTheFormulaInDoublePrecision) {
  Context context(2);
  double worst = 0, worst_int8 = 0;
  for (const DType type : kTypes) {
    for (const int64_t d : kDims) {
      for (const int64_t group : {1, 3, 8}) {
        const Shape shape{2, group, d};
        const int64_t positions = 70 * group, tokens = 2;
        Sequence s(shape, type, positions, static_cast<uint32_t>(d + group));
        s.store(context);
        const auto q = random_floats(tokens * shape.q_cols(), 5);
        const auto out = s.attend(context, q, tokens);
        for (int64_t row = 0; row < tokens * 2 * group; ++row) {
          const int64_t kv_head = row / group % 2,
                        seen = positions - tokens + row / (2 * group) + 1;
          std::vector<double> w(seen), o(d);
          double sum = 0, most_score = 0, most_value = 0;
          double most_query = 0, most_keys = 0, most_weight = 0;
          for (int64_t i = 0; i < d; ++i) {
            most_query = std::max(most_query, std::abs(static_cast<double>(q[row * d + i])) /
                                                  std::sqrt(static_cast<double>(d)));
          }
          for (int64_t p = 0; p < seen; ++p) {
            double size = 0, keys = 0;
            for (int64_t i = 0; i < d; ++i) {
              const double product = static_cast<double>(q[row * d + i]) *
                                     s.element(false, p, kv_head, i) * s.scale(false, p, kv_head);
              w[p] += product / std::sqrt(static_cast<double>(d));
              size += std::abs(product) / std::sqrt(static_cast<double>(d));
              keys += std::abs(s.element(false, p, kv_head, i) * s.scale(false, p, kv_head));
            }
            most_score = std::max(most_score, size);
            most_keys = std::max(most_keys, keys);
          }
          const double max = *std::max_element(w.begin(), w.end());
          for (int64_t p = 0; p < seen; ++p) {
            sum += w[p] = std::exp(w[p] - max);
            most_weight = std::max(most_weight, w[p] * s.scale(true, p, kv_head));
            for (int64_t i = 0; i < d; ++i) {
              const double v =
                  static_cast<double>(s.element(true, p, kv_head, i)) * s.scale(true, p, kv_head);
              o[i] += w[p] * v;
              most_value = std::max(most_value, std::abs(v));
            }
          }
          // A score is off by d + 4 roundings of at most its absolute terms' sum A, and by two
          // more of the difference of two scores, at most 2 A. That and the 4 units of e^x are a
          // relative error of its weight, which counts in the weighted sum and in the sum. Then a
          // page's 256 products and its 16 + 4 sums, the merges (4 roundings, each with two e^x),
          // the scale of int8 and the division.
          const double pages = static_cast<double>((seen + kPageTokens - 1) / kPageTokens);
          double bound =
              kUnit * most_value *
              (2 * ((static_cast<double>(d) + 8) * most_score + 4) + 256 + 20 + 12 * pages + 2);
          if (type == DType::kI8) {
            // A number of the query is off by half a unit, and a score by that times its keys,
            // which counts twice as above. A weight is off by half a unit of its page, which is no
            // larger than the unit of the largest of all, and meets numbers up to 127.
            bound += 2 * most_value * most_query / 32639 / 2 * most_keys;
            bound += static_cast<double>(seen) * most_weight / 32639 / 2 * 127 / sum;
          }
          for (int64_t i = 0; i < d; ++i) {
            const double error = std::abs(out[row * d + i] - o[i] / sum);
            double& worst_of_type = type == DType::kI8 ? worst_int8 : worst;
            worst_of_type = std::max(worst_of_type, error);
            ASSERT_LE(error, bound) << dtype_name(type) << ", " << shape << ", row " << row;
          }
        }
      }
    }
  }
  // What the errors come to when they do not all point one way (16 bits: 2^-16 of the largest): a
  // mechanism that is wrong is off by more, however loose the bound of a long row is.
  EXPECT_LT(worst, 1e-5);
  EXPECT_LT(worst_int8, 2e-4);
}

TEST(Attention, EveryNumberOfPositionsGivesTheSameBitsOnEveryInstructionSet) {
  Context plain(1, Isa::kPlain);
  for (const DType type : kTypes) {
    const Shape shape{1, 3, 20};
    Sequence s(shape, type, 2 * kPageTokens + 1);
    s.store(plain);
    const auto q = random_floats(3 * shape.q_cols(), 7);
    for (int64_t positions = 1; positions <= kPageTokens + 1; ++positions) {
      s.positions = positions;
      const int64_t tokens = std::min<int64_t>(positions, 3);
      const auto expected = s.attend(plain, q, tokens);
      for (const Isa isa : fast_isas()) {
        EXPECT_TRUE(same_bits(s.attend(context(isa), q, tokens), expected))
            << isa_name(isa) << ", " << dtype_name(type) << ", positions " << positions;
      }
    }
  }
}

TEST(Attention, EveryShapeGivesTheSameBitsOnEveryInstructionSet) {
  Context plain(1, Isa::kPlain);
  for (const DType type : kTypes) {
    for (const int64_t d : kDims) {
      for (int64_t group = 1; group <= 8; ++group) {
        const Shape shape{1, group, d};
        Sequence s(shape, type, 70);
        s.store(plain);
        const auto q = random_floats(2 * shape.q_cols(), 9);
        const auto expected = s.attend(plain, q, 2);
        for (const Isa isa : fast_isas()) {
          EXPECT_TRUE(same_bits(s.attend(context(isa), q, 2), expected))
              << isa_name(isa) << ", " << dtype_name(type) << ", " << shape;
        }
      }
    }
  }
}

// Tiles have up to 96 rows and, where threads wait, fewer; the token counts stand around their
// borders. A job's tokens may be cut anywhere, and so may the past of a lone token.
TEST(Attention, AnyTileCutAndNumberOfThreadsGivesTheSameBits) {
  Context alone(1);
  for (const DType type : kTypes) {
    for (const int64_t group : {1, 4, 5}) {
      const Shape shape{2, group, 24};
      const int64_t positions = 3 * kPageTokens + 5;
      Sequence s(shape, type, positions);
      s.store(alone);
      const int64_t tile = 96 / group;
      for (const int64_t tokens : {int64_t{1}, tile - 1, tile, tile + 1, 2 * tile, 2 * tile + 1}) {
        const auto q = random_floats(tokens * shape.q_cols(), 11);
        const auto expected = s.attend(alone, q, tokens, 1);
        for (const int threads : {1, 2, 4}) {
          Context context(threads);
          for (const int64_t cut : {tokens, int64_t{1}, int64_t{7}, tile}) {
            EXPECT_TRUE(same_bits(s.attend(context, q, tokens, cut), expected))
                << dtype_name(type) << ", " << shape << ", tokens " << tokens << " in pieces of "
                << cut << ", " << threads << " threads";
          }
        }
      }
    }
  }
}

TEST(Attention, ALongPastIsSharedByThreadsWithoutATrace) {
  Context alone(1);
  for (const DType type : kTypes) {
    for (const Shape shape : {Shape{1, 5, 64}, Shape{2, 4, 128}}) {
      Sequence s(shape, type, 41 * kPageTokens + 3);
      s.store(alone);
      for (const int64_t tokens : {1, 2, 3, 6}) {
        const auto q = random_floats(tokens * shape.q_cols(), 13);
        const auto expected = s.attend(alone, q, tokens);
        for (const int threads : {2, 3, 8}) {
          for (const Isa isa : available_isas()) {
            // Slow.
            if (isa == Isa::kPlain && (threads != 3 || tokens != 2 || shape.d != 64)) continue;
            Context context(threads, isa);
            EXPECT_TRUE(same_bits(s.attend(context, q, tokens), expected))
                << isa_name(isa) << ", " << dtype_name(type) << ", " << shape << ", tokens "
                << tokens << ", " << threads << " threads";
          }
        }
      }
    }
  }
}

// Around six rows, tiles of 96 rows, pages, and the 577 tokens of a vision encoder's tile. A lone
// token at the last position sees as much, by the code that the tests above are about.
TEST(Attention, WithoutACausalLimitEveryTokenIsAsIfAloneAndLast) {
  Context alone(1);
  std::vector<std::unique_ptr<Context>> contexts;
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 3}) contexts.push_back(std::make_unique<Context>(threads, isa));
  }
  for (const DType type : kTypes) {
    for (const Shape shape : {Shape{2, 1, 88}, Shape{1, 3, 20}}) {
      for (const auto& [tokens, past] : {std::pair<int64_t, int64_t>{1, 70},
                                         {5, 0},
                                         {7, 257},
                                         {95, 0},
                                         {97, 70},
                                         {257, 0},
                                         {577, 0}}) {
        Sequence s(shape, type, past + tokens);
        s.store(alone);
        const auto q = random_floats(tokens * shape.q_cols(), 19);
        const auto expected = s.attend_alone(alone, q, tokens);
        for (const auto& context : contexts) {
          // Slow.
          if (context->isa == Isa::kPlain && tokens > (type == DType::kF32 ? 257 : 97)) continue;
          EXPECT_TRUE(same_bits(s.attend_to_all(*context, q, tokens), expected))
              << isa_name(context->isa) << ", " << dtype_name(type) << ", " << shape << ", tokens "
              << tokens << " after " << past << ", " << context->threads.size() << " threads";
        }
      }
    }
  }
}

TEST(Attention, WithoutACausalLimitALongPastIsSharedByThreadsToo) {
  Context alone(1);
  for (const DType type : kTypes) {
    const Shape shape{1, 5, 64};
    Sequence s(shape, type, 41 * kPageTokens + 3);
    s.store(alone);
    for (const int64_t tokens : {2, 6}) {
      const auto q = random_floats(tokens * shape.q_cols(), 21);
      const auto expected = s.attend_alone(alone, q, tokens);
      for (const int threads : {2, 3, 8}) {
        Context context(threads);
        EXPECT_TRUE(same_bits(s.attend_to_all(context, q, tokens), expected))
            << dtype_name(type) << ", tokens " << tokens << ", " << threads << " threads";
      }
    }
  }
}

TEST(Attention, JobsWithAndWithoutACausalLimitDoNotDisturbEachOther) {
  Context alone(1);
  const Shape shape{2, 1, 88};
  for (const Isa isa : available_isas()) {
    for (const int threads : {1, 2, 3}) {
      Context context(threads, isa);
      std::vector<Sequence> sequences;
      for (const int64_t tokens : {100, 1, 49, 30}) {
        sequences.emplace_back(shape, DType::kF32, tokens, static_cast<uint32_t>(tokens));
        sequences.back().store(alone);
      }
      std::vector<std::vector<float>> queries, outs;
      for (const Sequence& s : sequences) {
        queries.push_back(random_floats(s.positions * shape.q_cols(), 23));
        outs.emplace_back(queries.back().size());
      }
      std::vector<AttentionJob> jobs;
      for (size_t i = 0; i < sequences.size(); ++i) {
        jobs.push_back(sequences[i].job_to_all(queries[i], sequences[i].positions, outs[i]));
        jobs.back().causal = i == 2;
      }
      attention(context, jobs);
      for (size_t i = 0; i < sequences.size(); ++i) {
        const Sequence& s = sequences[i];
        EXPECT_TRUE(same_bits(outs[i], i == 2 ? s.attend(alone, queries[i], s.positions)
                                              : s.attend_to_all(alone, queries[i], s.positions)))
            << isa_name(isa) << ", " << threads << " threads, job " << i;
      }
    }
  }
}

// A key or value that is no number spoils the tokens that see it and leaves no trace in the others,
// though they share a tile with those that do.
TEST(Attention, WhatATokenDoesNotSeeDoesNotMatterEvenIfItIsNoNumber) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const DType type : kTypes) {
      for (const int64_t d : {8, 80}) {
        if (isa == Isa::kPlain && d != 8) continue;  // slow
        const Shape shape{2, 3, d};
        const int64_t positions = kPageTokens + 70, tokens = 80;
        const auto q = random_floats(tokens * shape.q_cols(), 15);
        Sequence s(shape, type, positions);
        s.store(context);
        const auto clean = s.attend(context, q, tokens);
        for (const int64_t bad : {positions - 79, positions - 70, positions - 33, positions - 1}) {
          if (isa == Isa::kPlain && bad != positions - 33) continue;
          for (const float number : {NAN, INFINITY}) {
            for (const bool in_keys : {true, false}) {
              Sequence other(shape, type, positions);
              for (int64_t i = 0; i < shape.kv_cols(); i += 5) {
                (in_keys ? other.keys : other.values)[bad * shape.kv_cols() + i] = number;
              }
              other.store(context);
              const auto out = other.attend(context, q, tokens);
              const int64_t unaware = (bad - (positions - tokens)) * shape.q_cols();
              EXPECT_TRUE(same_bits({out.begin(), out.begin() + unaware},
                                    {clean.begin(), clean.begin() + unaware}))
                  << isa_name(isa) << ", " << dtype_name(type) << ", d " << d << ", bad " << bad;
              const auto numbers = std::count_if(out.begin() + unaware, out.end(),
                                                 [](float x) { return std::isfinite(x); });
              // In f32 and bf16 a value spoils its own component only, and an infinite key may just
              // make a score the smallest.
              if (type == DType::kI8 || (in_keys && std::isnan(number))) {
                EXPECT_EQ(numbers, 0);
              } else {
                EXPECT_LT(numbers, static_cast<int64_t>(out.size()) - unaware);
              }
            }
          }
        }
      }
    }
  }
}

TEST(Attention, QueriesThatAreNoNumbersDoNotCrash) {
  Context context(2);
  for (const DType type : kTypes) {
    const Shape shape{2, 4, 64};
    Sequence s(shape, type, 300);
    s.store(context);
    for (const float number : {NAN, INFINITY, -INFINITY, 3e38f}) {
      const std::vector<float> q(static_cast<size_t>(20 * shape.q_cols()), number);
      for (const float x : s.attend(context, q, 20)) EXPECT_TRUE(std::isnan(x));
    }
  }
}

TEST(Attention, LargeScoresChooseTheLargest) {
  Context context(1);
  const Shape shape{1, 1, 4};
  Sequence s(shape, DType::kF32, 2 * kPageTokens);
  s.keys[4 * 100] = 1000.0f;
  s.store(context);
  const std::vector<float> q = {1000.0f, 0, 0, 0};
  const auto out = s.attend(context, q, 1);
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(out[i], s.values[4 * 100 + i]);
}

// Keys that stand in one place for each page, far from those of other pages, and queries of the
// last tokens that look at the place of page `at`: a few pages have all the mass.
Sequence clustered(Context& context, Shape shape, DType type, int64_t positions, uint32_t seed) {
  Sequence s(shape, type, positions, seed);
  const int64_t cols = shape.kv_cols();
  const auto places = random_floats((positions / kPageTokens + 1) * cols, seed + 2);
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < cols; ++i) {
      float& key = s.keys[p * cols + i];
      key = places[p / kPageTokens * cols + i] + 0.05f * key;
    }
  }
  s.store(context);
  s.bound(context);
  return s;
}
std::vector<float> queries_at(const Sequence& s, int64_t tokens, int64_t at, float strength) {
  auto q = random_floats(tokens * s.shape.q_cols(), 31);
  const int64_t d = s.shape.d;
  for (size_t j = 0; j < q.size(); ++j) {
    const int64_t head = static_cast<int64_t>(j) / d % (s.shape.kv_heads * s.shape.group);
    const int64_t i = static_cast<int64_t>(j) % d;
    q[j] = 0.1f * q[j] +
           strength * s.keys[at * kPageTokens * s.shape.kv_cols() + head / s.shape.group * d + i];
  }
  return q;
}

TEST(KeyBounds, HoldEveryKeyAndAreTight) {
  for (const DType type : kTypes) {
    for (const int64_t d : {1, 17, 64, 65}) {
      Context plain(1, Isa::kPlain);
      Sequence s({2, 1, d}, type, 3 * kPageTokens + 7, static_cast<uint32_t>(d));
      s.store(plain);
      s.bound(plain);
      for (int64_t page = 0; page < 3; ++page) {
        for (int64_t column = 0; column < 2 * d; ++column) {
          const int64_t head = column / d, i = column % d;
          float least = INFINITY, most = -INFINITY;
          for (int64_t t = page * kPageTokens; t < (page + 1) * kPageTokens; ++t) {
            const float key = s.element(false, t, head, i) * s.scale(false, t, head);
            least = std::min(least, key);
            most = std::max(most, key);
          }
          const float low = s.bound(false, page, head, i), high = s.bound(true, page, head, i);
          ASSERT_LE(low, least);
          ASSERT_GE(high, most);
          // A step of bf16 is at most 2^-7 of a number; int8 takes two.
          const float steps = type == DType::kBF16 ? 0 : type == DType::kF32 ? 1 : 2;
          ASSERT_GE(low, least - steps * 0x1p-7f * std::fabs(least) - 0x1p-126f);
          ASSERT_LE(high, most + steps * 0x1p-7f * std::fabs(most) + 0x1p-126f);
        }
      }
      for (const Isa isa : fast_isas()) {
        Sequence other({2, 1, d}, type, 3 * kPageTokens + 7, static_cast<uint32_t>(d));
        other.store(plain);
        other.bound(context(isa));
        EXPECT_EQ(std::memcmp(s.bounds[0], other.bounds[0], s.bounds_memory[0].size()), 0)
            << isa_name(isa) << ", " << dtype_name(type) << ", d " << d;
      }
    }
  }
}

TEST(KeyBounds, AreInfiniteWhereAKeyIsNotFinite) {
  for (const Isa isa : available_isas()) {
    for (const float number : {NAN, INFINITY, -INFINITY}) {
      Sequence s({1, 1, 20}, DType::kBF16, kPageTokens);
      s.keys[20 * 77 + 3] = number;
      s.store(context(isa));
      s.bound(context(isa));
      for (int64_t i = 0; i < 20; ++i) {
        EXPECT_EQ(std::isinf(s.bound(false, 0, 0, i)), i == 3);
        EXPECT_EQ(std::isinf(s.bound(true, 0, 0, i)), i == 3);
      }
    }
  }
}

// u of the contract.
float contract_bound(const Sequence& s, const float* q, int64_t kv_head, int64_t page) {
  const auto query = contract_query(s, q);
  float u = 0;
  for (int64_t i = 0; i < s.shape.d; ++i) {
    u = std::fma(query[i], s.bound(!(query[i] < 0), page, kv_head, i), u);
  }
  return u;
}

// To the bit, not nearly. Where all keys of a page are the same, bound and score are as close as
// they get.
TEST(PageChoice, NoScoreExceedsItsPagesBound) {
  Context plain(1, Isa::kPlain);
  for (const DType type : kTypes) {
    for (const int64_t d : {1, 16, 33, 64, 128}) {
      for (const bool same : {false, true}) {
        const Shape shape{2, 3, d};
        Sequence s(shape, type, 4 * kPageTokens, static_cast<uint32_t>(d));
        for (size_t i = 0; same && i < s.keys.size(); ++i) {
          s.keys[i] = s.keys[i % static_cast<size_t>(shape.kv_cols())];
        }
        s.store(plain);
        s.bound(plain);
        const auto q = random_floats(shape.q_cols(), 33);
        for (int64_t head = 0; head < 6; ++head) {
          for (int64_t page = 0; page < 4; ++page) {
            const float u = contract_bound(s, &q[head * d], head / 3, page);
            for (const float score :
                 contract_scores(s, &q[head * d], head / 3, page * kPageTokens, kPageTokens)) {
              ASSERT_LE(score, u) << dtype_name(type) << ", d " << d << ", same " << same;
            }
          }
        }
      }
    }
  }
}

// The choice and the result word for word, of one token and one kv head: the pages by their rank,
// as many of them as attention says that it visited, which are enough and not one too many.
TEST(PageChoice, IsTheContract) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const auto& [strength, epsilon] : {std::pair<float, float>{4.0f, 1e-3f},
                                            {1.5f, 1e-2f},
                                            {1.0f, 0.1f},
                                            {0.5f, 1e-3f},
                                            {0.0f, 1e-3f}}) {
      const Shape shape{1, 3, 40};
      const int64_t positions = 90 * kPageTokens + 100, last = 90;
      const Sequence s = clustered(context, shape, type, positions, 5);
      const auto q = queries_at(s, 1, /*at=*/37, strength);
      // Masses of the two pages that come first, then of the others by rank.
      std::vector<std::vector<double>> u(3), m(3), l(3);
      std::vector<double> seed(3);
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t p = 0; p <= last; ++p) {
          const auto scores = contract_scores(s, &q[h * 40], 0, p * kPageTokens,
                                              std::min(kPageTokens, positions - p * kPageTokens));
          u[h].push_back(p < last ? contract_bound(s, &q[h * 40], 0, p) : 0);
          m[h].push_back(*std::max_element(scores.begin(), scores.end()));
          double sum = 0;
          for (const float x : scores) sum += std::exp(x - m[h][p]);
          l[h].push_back(sum);
        }
        seed[h] = std::max(m[h][0], m[h][last]);
      }
      std::vector<float> most(last, -INFINITY);
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t p = 1; p < last; ++p) {
          most[p] = std::max(most[p], static_cast<float>(u[h][p]) - static_cast<float>(seed[h]));
        }
      }
      const float best = *std::max_element(most.begin(), most.end());
      std::vector<int64_t> order(last - 1);
      for (int64_t p = 1; p < last; ++p) order[p - 1] = p;
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return std::floor((best - most[a]) * 32) < std::floor((best - most[b]) * 32);
      });
      const auto part_left_out = [&](int64_t h, int64_t ranked, int64_t walked) {
        double mass = l[h][0] * std::exp(m[h][0]) + l[h][last] * std::exp(m[h][last]), rest = 0;
        for (int64_t i = 0; i < last - 1; ++i) {
          const int64_t p = order[i];
          if (i < walked) mass += l[h][p] * std::exp(m[h][p]);
          if (i >= ranked) rest += 256 * std::exp(u[h][p]);
        }
        return rest / (mass + rest);
      };
      for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, epsilon, 0},
                                      PageChoice{PageChoice::Mode::kBudget, 0, 20},
                                      PageChoice{PageChoice::Mode::kBudget, 0, 80}}) {
        PageVisits visits;
        const auto out = s.attend(context, q, 1, 1, &choice, &visits);
        const bool is_bounded = choice.mode == PageChoice::Mode::kBounded;
        const int64_t ranked = visits.visited - 2, walk = (last - 1 + 3) / 4;
        EXPECT_EQ(visits.seen, last + 1);
        if (!is_bounded) {
          EXPECT_EQ(visits.visited, choice.pages);
        }
        std::vector<int64_t> pages(order.begin(), order.begin() + ranked);
        pages.push_back(0);
        pages.push_back(last);
        std::sort(pages.begin(), pages.end());
        std::vector<float> expected;
        double before = 0, kept = 1;
        for (int64_t h = 0; h < 3; ++h) {
          const auto row = contract_row(s, &q[h * 40], 0, positions, pages);
          expected.insert(expected.end(), row.begin(), row.end());
          if (is_bounded) {
            EXPECT_LE(part_left_out(h, ranked, std::min(ranked, walk)), epsilon);
          }
          before = std::max(before, part_left_out(h, ranked - 1, std::min(ranked - 1, walk)));
          kept = std::min(kept, 1 - part_left_out(h, ranked, ranked));
        }
        EXPECT_TRUE(same_bits(out, expected)) << dtype_name(type) << ", strength " << strength;
        if (is_bounded && ranked > 0) {
          EXPECT_GT(before * 1.001, epsilon);  // R is rounded up a little
        }
        EXPECT_NEAR(visits.kept, kept, 1e-3 * (1 - kept) + 1e-6);
      }
    }
  }
}

// Over keys without any order, longer on some pages than on others; keys in clusters; and keys that
// make some bounds lie.
TEST(PageChoice, ResultsAreAsNearAsPromised) {
  Context context(2);
  for (const DType type : kTypes) {
    for (const char* kind : {"random", "clustered", "adverse"}) {
      const Shape shape{2, 4, 32};
      const int64_t positions = 150 * kPageTokens + 9, cols = shape.kv_cols();
      Sequence s = clustered(context, shape, type, positions, 7);
      const auto random = random_floats(positions * cols, 8);
      for (size_t j = 0; kind[0] != 'c' && j < s.keys.size(); ++j) {
        const int64_t p = static_cast<int64_t>(j) / cols, page = p / kPageTokens;
        if (kind[0] == 'r') {
          s.keys[j] = random[j] * 0.01f * static_cast<float>(page * 37 % 100);  // page 70: 0.9
        } else if (page == 70) {
          s.keys[j] = 1.5f;  // here is the mass
        } else {
          // Of every sixth page the keys point both ways, so that its bound is the highest and its
          // scores are low.
          const bool is_lie = page % 6 == 0;
          s.keys[j] = is_lie ? ((p + static_cast<int64_t>(j)) % 2 == 0 ? 3.0f : -3.0f) : 0.01f;
        }
      }
      s.store(context);
      s.bounds.clear();
      s.bound(context);
      const int64_t tokens = 3;
      const auto q = queries_at(s, tokens, /*at=*/70, kind[0] == 'r' ? 6.0f : 1.5f);
      float largest = 0;
      for (const float x : s.values) largest = std::max(largest, std::fabs(x));
      const auto exact = s.attend(context, q, tokens);
      for (const float epsilon : {0.3f, 0.01f, 1e-4f}) {
        const PageChoice choice{PageChoice::Mode::kBounded, epsilon};
        PageVisits visits;
        const auto out = s.attend(context, q, tokens, tokens, &choice, &visits);
        EXPECT_GE(visits.kept, 1 - epsilon) << kind;
        EXPECT_LT(visits.visited, visits.seen) << kind << ", epsilon " << epsilon;
        float error = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          error = std::max(error, std::fabs(out[i] - exact[i]));
        }
        // Both are rounded: errors of sums over pages as in MatchesTheFormulaInDoublePrecision.
        EXPECT_LE(error, 2 * epsilon * largest + 1e-5f) << kind << ", epsilon " << epsilon;
      }
    }
  }
}

TEST(PageChoice, OfAllPagesIsTheExactResultToTheBit) {
  Context context(2);
  for (const DType type : kTypes) {
    const Shape shape{2, 3, 24};
    const int64_t positions = 70 * kPageTokens + 3, tokens = 5;
    const Sequence s = clustered(context, shape, type, positions, 11);
    const auto q = queries_at(s, tokens, 3, 1.0f);
    const auto exact = s.attend(context, q, tokens);
    for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, 0.0f},
                                    PageChoice{PageChoice::Mode::kBudget, 0.0f, 71},
                                    PageChoice{PageChoice::Mode::kBudget, 0.0f, 1 << 20}}) {
      PageVisits visits;
      EXPECT_TRUE(same_bits(s.attend(context, q, tokens, tokens, &choice, &visits), exact));
      // The last 3 tokens see 71 pages, those before them 70.
      EXPECT_EQ(visits.seen, 2 * (3 * 71 + 2 * 70));
      EXPECT_EQ(visits.visited, visits.seen);
      EXPECT_EQ(visits.kept, 1.0f);
    }
  }
}

// Some tokens of a job see a page less than others; one of the choices leaves more than a span to
// visit, one leaves nothing out, and exact jobs stand between.
TEST(PageChoice, DoesNotDependOnCompanyCutThreadsOrInstructionSet) {
  Context plain(1, Isa::kPlain);
  const PageChoice choices[] = {{PageChoice::Mode::kBounded, 1e-3f},
                                {PageChoice::Mode::kBounded, 1e-6f},
                                {PageChoice::Mode::kBudget, 0, 9},
                                {PageChoice::Mode::kBudget, 0, 100}};
  for (const DType type : kTypes) {
    if (testing::kSanitized && type == DType::kF32) continue;
    const Shape shape{2, 2, 20};
    const int64_t tokens = 5;
    std::vector<Sequence> sequences;
    std::vector<std::vector<float>> queries;
    const int64_t pages = testing::kSanitized ? kSpanPages + 2 : 2 * kSpanPages + 12;
    for (const int64_t positions : {pages * kPageTokens + 2, 2 * kPageTokens + 3, 30 * kPageTokens}) {
      sequences.push_back(clustered(plain, shape, type, positions, 13));
      queries.push_back(queries_at(sequences.back(), tokens, 1, 0.9f));
    }
    for (const PageChoice& choice : choices) {
      std::vector<std::vector<float>> expected;
      for (size_t i = 0; i < sequences.size(); ++i) {
        expected.push_back(sequences[i].attend(plain, queries[i], tokens, 1, &choice));
      }
      const auto exact = sequences[0].attend(plain, queries[0], tokens);
      for (const Isa isa : available_isas()) {
        for (const int threads : {1, 3}) {
          if (isa == Isa::kPlain && (threads == 1 || testing::kSanitized)) continue;  // slow
          Context context(threads, isa);
          for (const int64_t cut : {tokens, int64_t{3}}) {
            if (isa == Isa::kPlain && cut == tokens) continue;  // slow
            EXPECT_TRUE(same_bits(sequences[0].attend(context, queries[0], tokens, cut, &choice),
                                  expected[0]))
                << isa_name(isa) << ", " << dtype_name(type) << ", " << threads << " threads";
          }
          std::vector<std::vector<float>> out(4, std::vector<float>(exact.size()));
          std::vector<AttentionJob> jobs;
          for (size_t i = 0; i < 4; ++i) {
            const Sequence& s = sequences[i % 3];
            const int64_t cols = shape.q_cols();
            jobs.push_back({{queries[i % 3].data(), tokens, cols, cols},
                            s.view(),
                            s.positions - tokens,
                            {out[i].data(), tokens, cols, cols},
                            /*causal=*/true,
                            i < 3 ? &choice : nullptr});
          }
          std::swap(jobs[1], jobs[3]);
          attention(context, jobs);
          for (size_t i = 0; i < 4; ++i) {
            EXPECT_TRUE(same_bits(out[i], i < 3 ? expected[i] : exact))
                << isa_name(isa) << ", " << dtype_name(type) << ", job " << i;
          }
        }
      }
    }
  }
}

TEST(PageChoice, APageWithAKeyThatIsNoNumberIsAlwaysVisited) {
  Context context(2);
  for (const DType type : kTypes) {
    const Shape shape{1, 2, 16};
    Sequence s = clustered(context, shape, type, 100 * kPageTokens, 15);
    const auto q = queries_at(s, 1, 50, 4.0f);
    for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, 0.01f},
                                    PageChoice{PageChoice::Mode::kBudget, 0, 4}}) {
      PageVisits visits;
      for (const float x : s.attend(context, q, 1, 1, &choice, &visits)) {
        EXPECT_TRUE(std::isfinite(x));
      }
      EXPECT_LT(visits.visited, 20);
      Sequence other = clustered(context, shape, type, 100 * kPageTokens, 15);
      other.keys[(77 * kPageTokens + 5) * 16 + 2] = NAN;
      other.store(context);
      other.bounds.clear();
      other.bound(context);
      for (const float x : other.attend(context, q, 1, 1, &choice)) EXPECT_TRUE(std::isnan(x));
    }
  }
}

TEST(PageChoice, QueriesThatAreNoNumbersDoNotCrash) {
  Context context(2);
  const Shape shape{1, 2, 16};
  const Sequence s = clustered(context, shape, DType::kI8, 100 * kPageTokens, 17);
  for (const float number : {NAN, INFINITY, 3e38f}) {
    const std::vector<float> q(static_cast<size_t>(shape.q_cols()), number);
    for (const PageChoice choice : {PageChoice{PageChoice::Mode::kBounded, 0.01f},
                                    PageChoice{PageChoice::Mode::kBudget, 0, 4}}) {
      PageVisits visits;
      for (const float x : s.attend(context, q, 1, 1, &choice, &visits)) {
        EXPECT_TRUE(std::isnan(x));
      }
      EXPECT_LE(visits.visited, 100);
      EXPECT_EQ(visits.kept, visits.visited == 100 ? 1.0f : 0.0f);
    }
  }
}

TEST(KvStore, KeepsWhatTheTypeSays) {
  for (const Isa isa : available_isas()) {
    Context context(2, isa);
    for (const DType type : kTypes) {
      for (const int64_t d : {1, 15, 16, 17, 63, 64, 65, 128, 200}) {
        const int64_t positions = 131;
        Sequence s({3, 1, d}, type, positions);
        s.store(context);
        for (int64_t row = 0; row < positions * 3; ++row) {
          for (const bool is_value : {false, true}) {
            const float* x = &(is_value ? s.values : s.keys)[row * d];
            float most = 0;
            for (int64_t i = 0; i < d; ++i) most = std::max(most, std::fabs(x[i]));
            const float scale = s.scale(is_value, row / 3, row % 3);
            if (type == DType::kI8) {
              ASSERT_EQ(scale, most / 127);
            }
            for (int64_t i = 0; i < d; ++i) {
              const float kept = s.element(is_value, row / 3, row % 3, i);
              const float expected = type == DType::kF32    ? x[i]
                                     : type == DType::kBF16 ? to_float(to_bf16(x[i]))
                                                            : std::nearbyint(x[i] * (127 / most));
              ASSERT_EQ(kept, expected) << isa_name(isa) << ", " << dtype_name(type) << ", d " << d;
            }
          }
        }
      }
    }
  }
}

TEST(KvStore, PiecesOfAnySizeLeaveTheSamePages) {
  for (const DType type : kTypes) {
    for (const int64_t d : {7, 64}) {
      const Shape shape{2, 1, d};
      const int64_t positions = kPageTokens + 90;
      Context plain(1, Isa::kPlain);
      Sequence whole(shape, type, positions);
      whole.store(plain);
      for (const Isa isa : available_isas()) {
        Context context(2, isa);
        for (const int64_t size : {1, 2, 15, 16, 17, 63, 64, 65, 300}) {
          Sequence pieces(shape, type, positions);
          for (int64_t t = 0; t < positions; t += size) {
            pieces.store(context, t, std::min(size, positions - t));
          }
          for (size_t p = 0; p < pieces.memory.size(); ++p) {
            EXPECT_EQ(std::memcmp(pieces.memory[p].data(), whole.memory[p].data(),
                                  whole.memory[p].size()),
                      0)
                << isa_name(isa) << ", " << dtype_name(type) << ", d " << d << ", pieces of "
                << size;
          }
        }
      }
    }
  }
}

TEST(KvStore, Int8OfExtremesIsDefined) {
  for (const Isa isa : available_isas()) {
    Context context(1, isa);
    Sequence s({1, 1, 33}, DType::kI8, 5);
    const float rows[] = {0.0f, 0x1p-121f, 3e38f, NAN, -INFINITY};
    for (int64_t t = 0; t < 5; ++t) {
      std::fill_n(s.keys.begin() + t * 33, 33, 0.0f);
      s.keys[t * 33 + 32] = s.keys[t * 33 + 3] = rows[t];
    }
    s.store(context);
    for (int64_t t = 0; t < 5; ++t) {
      const float scale = s.scale(false, t, 0);
      EXPECT_EQ(s.element(false, t, 0, 3), t == 2 ? 127 : 0) << isa_name(isa) << t;
      EXPECT_EQ(s.element(false, t, 0, 32), t == 2 ? 127 : 0) << isa_name(isa) << t;
      EXPECT_EQ(s.element(false, t, 0, 0), 0);
      if (t < 2) {
        EXPECT_EQ(scale, 0.0f);
      } else if (t == 2) {
        EXPECT_EQ(scale, 3e38f / 127);
      } else {
        EXPECT_TRUE(std::isnan(scale));
      }
    }
  }
}

// Numbers that are hard to round, through the vector code and by the definition.
TEST(KvStore, Bf16RoundsLikeTheDefinition) {
  std::mt19937 random(17);
  for (const Isa isa : available_isas()) {
    Context context(1, isa);
    Sequence s({1, 1, 64}, DType::kBF16, 200);
    for (float& x : s.keys) {
      uint32_t bits = random();
      if (bits % 3 == 0) bits = (bits & 0xffff0000) | 0x8000;       // a tie
      if (bits % 50 == 1) bits |= 0x7f800000;                       // NaN
      if (bits % 50 == 2) bits = (bits & 0x80000000) | 0x7f7fffff;  // rounds to infinity
      std::memcpy(&x, &bits, sizeof(x));
    }
    s.store(context);
    for (int64_t t = 0; t < 200; ++t) {
      for (int64_t i = 0; i < 64; ++i) {
        const float kept = s.element(false, t, 0, i),
                    expected = to_float(to_bf16(s.keys[t * 64 + i]));
        EXPECT_EQ(std::memcmp(&kept, &expected, sizeof(float)), 0) << isa_name(isa) << kept;
      }
    }
  }
}

}  // namespace
}  // namespace drover
