// The bodies of both passes of packed attention, over one task. They are written once over a vector
// of W floats and over what multiplies: floats (packed_attention_float.h), or bf16 on the matrix
// unit (packed_attention_amx.cpp). The including file says for which instruction set
// (kernels/attention/attention_vector.h).
//
// A block of scores lies transposed, [key][row]: rows fill the lanes of vectors, so that maximum
// and sum of a row need nothing across lanes, and weights come out as all three products that take
// them want them. What multiplies is a `Unit` with
//   Keys, Rows   its forms of a block of keys (or values) and of rows (queries or their gradients)
//   Weights      its form of a block of weights, beside the floats [key][row] they are made from
//   scores       scores[p, r] = keys[p] . rows[r]
//   add_keys     to[i, r] += sum over p of keys[p, i] weights[p, r]
//   add_rows     to[p, i] += sum over r of weights[p, r] rows[r, i]
// Each leaves out what a causal block does not need, in its own steps; what no row sees of scores
// is then left as it was.
#pragma once

#include "kernels/attention/attention_vector.h"
#include "kernels/packed_attention/packed_attention_task.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr float kLowest = -3.0e38f, kLargest = 3.0e38f;
// Exponentials are powers of two here: the logarithms' base is brought into what scores are made
// of.
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// A running softmax counts scores from a reference, and moves it only when a score is above it by
// this much: sums stay below 2^12 times as many as there are keys, and are seldom multiplied.
constexpr float kHeadroom = 12.0f;

[[gnu::always_inline]] inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
[[gnu::always_inline]] inline int64_t up_to(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// Whether a is larger than b in any lane.
[[gnu::always_inline]] inline bool any_larger(V a, V b) {
#if DROVER_VECTOR_FLOATS == 16
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
#else
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
#endif
}

// 2^x, by a polynomial through (2^r - 1) / r at the Chebyshev points of [-1/2, 1/2]: with six terms
// within 1e-8, with four, for what is rounded to bf16, within 7e-6. Below -126 the result is that
// of -126; NaN gives NaN.
template <int kTerms>
[[gnu::always_inline]] inline V exp2_of(V x) {
  constexpr float kSix[] = {0.0001545316336f, 0.001339086331f, 0.009618083015f,
                            0.05550356954f,   0.2402265072f,   0.6931471825f};
  constexpr float kFour[] = {0.00965671055f, 0.05583828315f, 0.2402253002f, 0.6931367517f};
  static_assert(kTerms == 6 || kTerms == 4);
  // 1.5 * 2^23 + 127: adding it leaves the nearest integer, plus the bias of a float's exponent, in
  // the low bits.
  constexpr float kShift = 12582912.0f + 127.0f;
  x = max(all(-126.0f), x);
  const V shifted = x + kShift;
  const V r = x - (shifted - kShift);
  V p = all(kTerms == 6 ? kSix[0] : kFour[0]);
#pragma GCC unroll 6
  for (int i = 1; i < kTerms; ++i) p = fma(p, r, all(kTerms == 6 ? kSix[i] : kFour[i]));
  p = fma(p, r, all(1.0f));
  return p * __builtin_bit_cast(V, __builtin_bit_cast(U, shifted) << 23);
}

// Hands out a task's scratch memory, whole cache lines; where there is none it counts.
class Scratch {
 public:
  explicit Scratch(float* memory) : begin_(reinterpret_cast<uintptr_t>(memory)), at_(begin_) {}

  template <typename T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(at_);
    at_ += static_cast<uintptr_t>(up_to(count * static_cast<int64_t>(sizeof(T)), 64));
    return p;
  }
  int64_t floats() const { return static_cast<int64_t>((at_ - begin_) / sizeof(float)); }

 private:
  uintptr_t begin_, at_;
};

// A block of rows meets a block of keys: row r sees keys p <= r + shift.
struct Meeting {
  int64_t rows;
  int64_t keys;  // up to the last that a row sees
  int64_t shift;

  // Of the first row from the first key, both counted in the span.
  Meeting(int64_t row_count, int64_t key_count, bool causal, int64_t distance)
      : rows(row_count), keys(key_count), shift(causal ? least(distance, kBlockKeys) : kBlockKeys) {
    keys = end_key(rows - 1);
  }
  int64_t end_key(int64_t row) const {
    const int64_t end = row + shift + 1;
    return end < 0 ? 0 : least(end, keys);
  }
  int64_t first_row(int64_t key) const { return key > shift ? key - shift : 0; }
};

// The rows of N vectors: keys [0, whole) are seen by all of them, [whole, end) by some.
template <int N>
struct Lanes {
  int64_t whole, end;
  I last[N];  // key that each sees

  Lanes(const Meeting& m, int64_t first)
      : whole(m.end_key(first)), end(m.end_key(first + N * W - 1)) {
    I lane;
    for (int l = 0; l < W; ++l) lane[l] = l;
    const I most = I{} + static_cast<int32_t>(m.keys - 1);
    for (int v = 0; v < N; ++v) {
      last[v] = lane + static_cast<int32_t>(first + v * W + m.shift);
      last[v] = last[v] < most ? last[v] : most;
    }
  }
  // x for the rows of vector v that see the key.
  [[gnu::always_inline]] V if_seen(int v, int64_t key, V x, V otherwise) const {
    return last[v] >= I{} + static_cast<int32_t>(key) ? x : otherwise;
  }
  // Calls f(p, seen) for pairs of keys from p on, seen(v, p, x) being x or zero.
  template <typename F>
  [[gnu::always_inline]] void for_pairs(F f) const {
    int64_t p = 0;
    for (; p + 2 <= whole; p += 2) {
      f(
          p, [](int, int64_t, V x) __attribute__((always_inline)) { return x; });
    }
    for (; p < end; p += 2) {
      f(
          p, [&](int v, int64_t key, V x)
                 __attribute__((always_inline)) { return if_seen(v, key, x, V{}); });
    }
  }
};

// Calls f(Constant<vectors>, first row) for the lanes of so many rows, all of a block at once, so
// that scores are met as they lie, or 16 after 16.
template <typename F>
[[gnu::always_inline]] inline void for_lanes(int64_t rows, F f) {
  if (rows == kBlockRows) return f(Constant<kBlockRows / W>{}, 0);
  for (int64_t row = 0; row < rows; row += 16) f(Constant<16 / W>{}, row);
}

// Lane l of vector v goes to lane v of vector l: squares of one, two, ... vectors and lanes change
// places with their neighbours.
[[gnu::always_inline]] inline void turn_square(V (&x)[W]) {
  I lane;
  for (int l = 0; l < W; ++l) lane[l] = l;
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
    const I upper = (lane & step) != 0;
    const I to_low = upper ? lane - step + W : lane, to_high = upper ? lane + W : lane + step;
#pragma GCC unroll 16
    for (int v = 0; v < W; ++v) {
      if ((v & step) != 0) continue;
      const V low = x[v], high = x[v + step];
      x[v] = __builtin_shuffle(low, high, to_low);
      x[v + step] = __builtin_shuffle(low, high, to_high);
    }
  }
}

// to[c, r] = from[r, c] * scale
void turn(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float scale,
          float* to, int64_t to_stride) {
  const int64_t whole_rows = rows / W * W, whole_cols = cols / W * W;
  for (int64_t r = 0; r < whole_rows; r += W) {
    for (int64_t c = 0; c < whole_cols; c += W) {
      V x[W];
      for (int i = 0; i < W; ++i) x[i] = load(from + (r + i) * from_stride + c) * scale;
      turn_square(x);
      for (int i = 0; i < W; ++i) store(to + (c + i) * to_stride + r, x[i]);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; ++c) {
      to[c * to_stride + r] = from[r * from_stride + c] * scale;
    }
  }
}

inline void clear(float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0.0f;
}

inline float dot(const float* a, const float* b, int64_t n) {
  V sums[16 / W] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int v = 0; v < 16 / W; ++v) {
      sums[v] = fma(load(a + i + v * W), load(b + i + v * W), sums[v]);
    }
  }
  float sum = join_all(
      sums, [](V x, V y) __attribute__((always_inline)) { return x + y; })[0];
  for (; i < n; ++i) sum = fma(a[i], b[i], sum);
  return sum;
}

inline void take_bias(const float* from, int64_t n, float* to) {
  for (int64_t p = 0; p < n; ++p) to[p] = from != nullptr ? from[p] * kLog2E : 0.0f;
}

inline float score_scale(const PackedSpan& span) {
  return 1.0f / __builtin_sqrtf(static_cast<float>(span.head_dim));
}

// Blocks of rows, of all heads, keep a running softmax while blocks of keys come by.
template <typename Unit>
struct Forward {
  struct Block {
    int64_t row, rows, head;
  };
  struct State {
    typename Unit::Rows q;  // scaled
    float* mixed;           // [padded][kBlockRows]: sum of weights times values so far
    float* reference;       // [kBlockRows]: score whose weight is 1, the largest or a little less
    float* sum;             // [kBlockRows]: of weights, e to the score less the reference
  };

  const PackedForward& task;
  const PackedSpan& span;
  const int64_t d, padded;
  Scratch scratch;
  typename Unit::Keys keys, values;
  typename Unit::template Weights</*kForKeys=*/true, /*kForRows=*/false> weights;
  float* const bias;  // [kBlockKeys]

  explicit Forward(const PackedForward& t)
      : task(t),
        span(t.span),
        d(span.head_dim),
        padded(up_to(d, Unit::kStep)),
        scratch(t.scratch),
        keys(scratch, d, kBlockKeys, /*plain=*/true, /*turned=*/false),
        values(scratch, d, kBlockKeys, /*plain=*/false, /*turned=*/true),
        weights(scratch),
        bias(scratch.take<float>(kBlockKeys)) {}

  State take_state(Scratch& from) const {
    typename Unit::Rows q(from, d, /*plain=*/false);
    float* mixed = from.take<float>(padded * kBlockRows);
    float* reference = from.take<float>(kBlockRows);
    return {q, mixed, reference, from.take<float>(kBlockRows)};
  }
  // Calls f(state, block) for each block.
  template <typename F>
  void for_blocks(F f) const {
    Scratch states = scratch;
    for (int64_t row = task.begin; row < task.end; row += kBlockRows) {
      for (int64_t head = 0; head < span.group; ++head) {
        f(take_state(states), Block{row, least(kBlockRows, task.end - row), head});
      }
    }
  }

  // A block takes its queries when it meets the first keys, and gives its result after the last it
  // sees.
  void run() {
    const int64_t seen = span.causal ? task.end : span.count;
    for (int64_t p = 0; p < seen; p += kBlockKeys) {
      const int64_t n = least(kBlockKeys, seen - p);
      keys.take({span.k.data + p * span.k.stride, span.k.stride}, n);
      values.take({span.v.data + p * span.v.stride, span.v.stride}, n);
      take_bias(span.key_bias != nullptr ? span.key_bias + p : nullptr, n, bias);
      for_blocks([&](State s, const Block& b) {
        const Meeting m(b.rows, n, span.causal, b.row - p);
        if (m.keys == 0) return;
        if (p == 0) start(s, b);
        Unit::scores(keys, 0, s.q, m, weights.scores);
        for_lanes(up_to(b.rows, Unit::kStep), [&](auto vectors, int64_t first) {
          weigh<decltype(vectors)::value>(s, m, first);
        });
        Unit::add_keys(values, 0, weights, m, s.mixed);
        if (p + kBlockKeys >= (span.causal ? b.row + b.rows : seen)) finish(s, b);
      });
    }
  }

  void start(State& s, const Block& b) const {
    s.q.take({span.q.data + b.row * span.q.stride + b.head * d, span.q.stride}, b.rows,
             score_scale(span) * kLog2E);
    clear(s.mixed, padded * kBlockRows);
    clear(s.sum, kBlockRows);
    for (int64_t r = 0; r < kBlockRows; ++r) s.reference[r] = kLowest;
  }

  void finish(const State& s, const Block& b) const {
    for (int64_t r = 0; r < b.rows; ++r) {
      task.log_sums.data[(b.row + r) * task.log_sums.stride + b.head] =
          s.reference[r] * kLn2 + __builtin_logf(s.sum[r]);
    }
    for (int64_t lane = 0; lane < b.rows; lane += W) {
      multiply_lanes(s, lane, all(1.0f) / load(s.sum + lane));
    }
    turn(s.mixed, kBlockRows, d, b.rows, 1.0f, task.out.data + b.row * task.out.stride + b.head * d,
         task.out.stride);
  }

  void multiply_lanes(const State& s, int64_t lane, V scale) const {
    for (int64_t i = 0; i < d; ++i) {
      float* at = s.mixed + i * kBlockRows + lane;
      store(at, load(at) * scale);
    }
  }

  // Turns the scores of N vectors of rows into weights.
  template <int N>
  void weigh(const State& s, const Meeting& m, int64_t first) {
    const Lanes<N> at(m, first);
    const auto score = [&](int64_t p, int v) __attribute__((always_inline)) {
      return load(weights.scores + p * kBlockRows + first + v * W) + all(bias[p]);
    };
    V before[N], reference[N];
    for (int v = 0; v < N; ++v) reference[v] = before[v] = load(s.reference + first + v * W);
    int64_t p = 0;
    for (; p < at.whole; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) reference[v] = max(score(p, v), reference[v]);
    }
    for (; p < at.end; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        reference[v] = max(at.if_seen(v, p, score(p, v), reference[v]), reference[v]);
      }
    }
    for (int v = 0; v < N; ++v) {
      if (any_larger(reference[v], before[v] + kHeadroom)) {
        const int64_t lane = first + v * W;
        const V scale = exp2_of<6>(before[v] - reference[v]);
        store(s.reference + lane, reference[v]);
        store(s.sum + lane, load(s.sum + lane) * scale);
        multiply_lanes(s, lane, scale);
      } else {
        reference[v] = before[v];
      }
    }

    V sums[N] = {};
    at.for_pairs([&](int64_t p, auto seen) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        const V even = seen(v, p, exp2_of<Unit::kTerms>(score(p, v) - reference[v]));
        const V odd = seen(v, p + 1, exp2_of<Unit::kTerms>(score(p + 1, v) - reference[v]));
        sums[v] += even + odd;
        weights.keep(p, first + v * W, even, odd);
      }
    });
    for (int v = 0; v < N; ++v) {
      const int64_t lane = first + v * W;
      store(s.sum + lane, load(s.sum + lane) + sums[v]);
      for (p = up_to(at.end, 2); p < up_to(m.keys, Unit::kKeyStep); p += 2) {
        weights.keep(p, lane, V{}, V{});
      }
    }
  }
};

// Keys stay while blocks of rows come by, of one head after the other.
template <typename Unit>
struct Backward {
  const PackedBackward& task;
  const PackedSpan& span;
  const int64_t d, padded, count;
  Scratch scratch;
  typename Unit::Keys keys, values;
  typename Unit::Rows q, dout;  // q is scaled as in the forward pass
  typename Unit::template Weights</*kForKeys=*/false, /*kForRows=*/true> weights;
  typename Unit::template Weights</*kForKeys=*/true, /*kForRows=*/true> dscores;
  float* const dk;  // [keys][padded], of keys times log2 e
  float* const dv;
  float* const dq;        // [padded][kBlockRows], not scaled yet
  float* const log_sums;  // [kBlockRows], to the base of two
  float* const deltas;    // [kBlockRows]: dout . out
  float* const bias;      // [keys]

  explicit Backward(const PackedBackward& t)
      : task(t),
        span(t.span),
        d(span.head_dim),
        padded(up_to(d, Unit::kStep)),
        count(up_to(t.end - t.begin, kBlockKeys)),
        scratch(t.scratch),
        keys(scratch, d, count, /*plain=*/true, /*turned=*/true),
        values(scratch, d, count, /*plain=*/true, /*turned=*/false),
        q(scratch, d, /*plain=*/true),
        dout(scratch, d, /*plain=*/true),
        weights(scratch),
        dscores(scratch),
        dk(scratch.take<float>(count * padded)),
        dv(scratch.take<float>(count * padded)),
        dq(scratch.take<float>(padded * kBlockRows)),
        log_sums(scratch.take<float>(kBlockRows)),
        deltas(scratch.take<float>(kBlockRows)),
        bias(scratch.take<float>(count)) {}

  void run() {
    const int64_t n = task.end - task.begin;
    keys.take({span.k.data + task.begin * span.k.stride, span.k.stride}, n);
    values.take({span.v.data + task.begin * span.v.stride, span.v.stride}, n);
    take_bias(span.key_bias != nullptr ? span.key_bias + task.begin : nullptr, n, bias);
    clear(dk, count * padded);
    clear(dv, count * padded);
    const int64_t first = span.causal ? task.begin : 0;
    for (int64_t row = first; row < span.count; row += kBlockRows) {
      const int64_t rows = least(kBlockRows, span.count - row);
      for (int64_t head = 0; head < span.group; ++head) {
        float* const to = task.dq.data + (row - first) * task.dq.stride + head * d;
        take_rows(row, rows, head);
        for (int64_t p = 0; p < n; p += kBlockKeys) {
          const Meeting m(rows, least(kBlockKeys, n - p), span.causal, row - (task.begin + p));
          if (m.keys == 0) break;  // nor any later ones
          meet(p, m);
        }
        turn(dq, kBlockRows, d, rows, score_scale(span), to, task.dq.stride);
      }
    }
    for (int64_t p = 0; p < n; ++p) {
      float* const to_k = task.dk.data + (task.begin + p) * task.dk.stride;
      float* const to_v = task.dv.data + (task.begin + p) * task.dv.stride;
      for (int64_t i = 0; i < d; ++i) to_k[i] = dk[p * padded + i] * kLn2;
      for (int64_t i = 0; i < d; ++i) to_v[i] = dv[p * padded + i];
    }
  }

  void take_rows(int64_t row, int64_t rows, int64_t head) {
    const auto from = [&](PackedRows x) {
      return PackedRows{x.data + row * x.stride + head * d, x.stride};
    };
    q.take(from(span.q), rows, score_scale(span) * kLog2E);
    dout.take(from(task.dout), rows, 1.0f);
    clear(dq, padded * kBlockRows);
    const PackedRows gradient = from(task.dout), out = from(task.out);
    for (int64_t r = 0; r < kBlockRows; ++r) {
      // What fills up the lanes weighs nothing.
      log_sums[r] = r < rows ? task.log_sums.data[(row + r) * task.log_sums.stride + head] * kLog2E
                             : kLargest;
      deltas[r] =
          r < rows ? dot(gradient.data + r * gradient.stride, out.data + r * out.stride, d) : 0.0f;
    }
  }

  void meet(int64_t p, const Meeting& m) {
    Unit::scores(keys, p, q, m, weights.scores);
    Unit::scores(values, p, dout, m, dscores.scores);
    for_lanes(up_to(m.rows, Unit::kStep), [&](auto vectors, int64_t first) {
      differentiate<decltype(vectors)::value>(bias + p, m, first);
    });
    Unit::add_rows(weights, dout, m, dv + p * padded);
    Unit::add_rows(dscores, q, m, dk + p * padded);
    Unit::add_keys(keys, p, dscores, m, dq);
  }

  // Turns scores into weights, and dout . v into the gradients of scores, for N vectors of rows.
  template <int N>
  void differentiate(const float* key_bias, const Meeting& m, int64_t first) {
    const Lanes<N> at(m, first);
    at.for_pairs([&](int64_t p, auto seen) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        const int64_t lane = first + v * W;
        const auto weight = [&](int64_t key) __attribute__((always_inline)) {
          const V score = load(weights.scores + key * kBlockRows + lane) + all(key_bias[key]);
          return exp2_of<Unit::kTerms>(score - load(log_sums + lane));
        };
        const auto dscore = [&](int64_t key, V w) __attribute__((always_inline)) {
          return w * (load(dscores.scores + key * kBlockRows + lane) - load(deltas + lane));
        };
        const V even = weight(p), odd = weight(p + 1);
        dscores.keep(p, lane, seen(v, p, dscore(p, even)), seen(v, p + 1, dscore(p + 1, odd)));
        weights.keep(p, lane, seen(v, p, even), seen(v, p + 1, odd));
      }
    });
    for (int64_t p = up_to(at.end, 2); p < up_to(m.keys, Unit::kKeyStep); p += 2) {
      for (int64_t lane = first; lane < first + N * W; lane += W) {
        dscores.keep(p, lane, V{}, V{});
        weights.keep(p, lane, V{}, V{});
      }
    }
  }
};

template <typename Unit>
int64_t forward_scratch(const PackedSpan& span, int64_t rows) {
  const PackedForward none{
      .span = span, .begin = 0, .end = rows, .out = {}, .log_sums = {}, .scratch = nullptr};
  Forward<Unit> pass(none);
  for (int64_t i = 0; i < up_to(rows, kBlockRows) / kBlockRows * span.group; ++i) {
    pass.take_state(pass.scratch);
  }
  return pass.scratch.floats();
}

template <typename Unit>
int64_t backward_scratch(const PackedSpan& span, int64_t n) {
  PackedBackward none{};
  none.span = span;
  none.end = n;
  return Backward<Unit>(none).scratch.floats();
}

}  // namespace
}  // namespace drover::DROVER_ATTENTION_ISA
