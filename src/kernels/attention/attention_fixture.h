// For the tests of this folder: a cache of random keys and values, and the contract of attention.h,
// word for word.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <vector>

#include "base/aligned.h"
#include "kernels/attention/attention.h"
#include "kernels/context.h"
#include "tensor/float16.h"

namespace drover {

inline constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kI8};
// Around whole vectors, and panels of 64 with every remainder of 16: 16, 32, 48 and 0.
inline constexpr int64_t kDims[] = {1, 15, 16, 17, 33, 48, 63, 64, 65, 112, 128, 256, 512};
inline constexpr double kUnit = 0x1p-24;  // half a unit in the last place of a float

inline std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

// Every set but the plain one, against which they are held.
inline std::vector<Isa> fast_isas() {
  auto isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

// One per set, kept: making one costs more than many a run.
inline Context& context(Isa isa) {
  static std::vector<std::unique_ptr<Context>> made;
  for (auto& c : made) {
    if (c->isa == isa) return *c;
  }
  return *made.emplace_back(std::make_unique<Context>(1, isa));
}

inline ::testing::AssertionResult same_bits(const std::vector<float>& a,
                                            const std::vector<float>& b) {
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
inline float contract_exp(float x) {
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

// The 16-bit form of a vector; returns the unit.
inline float contract_rounded(const std::vector<float>& x, std::vector<int32_t>& numbers) {
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
inline std::vector<float> contract_query(const Sequence& s, const float* q) {
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
inline float unit_sum(std::vector<float> x, std::vector<float> w) {
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
inline std::vector<float> contract_scores(const Sequence& s, const float* q, int64_t kv_head,
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
inline std::vector<float> contract_row(const Sequence& s, const float* q, int64_t kv_head,
                                       int64_t seen, std::vector<int64_t> pages = {},
                                       bool by_unit = false) {
  if (pages.empty()) {
    for (int64_t p = 0; p * kPageTokens < seen; ++p) pages.push_back(p);
  }
  const int64_t d = s.shape.d;
  struct State {
    float m = 0, l = 0;
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

}  // namespace drover
