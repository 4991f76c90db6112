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

[[gnu::always_inline]] inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
[[gnu::always_inline]] inline int64_t up_to(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
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

// The rows of a vector: keys [0, whole) are seen by all of them, [whole, end) by some.
struct LaneRows {
  int64_t whole, end;
  I last;  // key that each sees

  LaneRows(const Meeting& m, int64_t first)
      : whole(m.end_key(first)), end(m.end_key(first + W - 1)) {
    for (int l = 0; l < W; ++l) last[l] = l;
    last += static_cast<int32_t>(first + m.shift);
    const I most = I{} + static_cast<int32_t>(m.keys - 1);
    last = last < most ? last : most;
  }
  V if_seen(int64_t key, V x, V otherwise) const {
    return last >= I{} + static_cast<int32_t>(key) ? x : otherwise;
  }
};

// to[c, r] = from[r, c] * scale
void turn(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float scale,
          float* to, int64_t to_stride) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Places __attribute__((vector_size(16)));
  const auto single = [&](int64_t r, int64_t c) {
    to[c * to_stride + r] = from[r * from_stride + c] * scale;
  };
  const int64_t whole_cols = cols / 4 * 4;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t c = 0; c < whole_cols; c += 4) {
      Four x[4];
      for (int i = 0; i < 4; ++i) x[i] = load_as<Four>(from + (r + i) * from_stride + c) * scale;
      const Four low01 = __builtin_shuffle(x[0], x[1], Places{0, 4, 1, 5});
      const Four low23 = __builtin_shuffle(x[2], x[3], Places{0, 4, 1, 5});
      const Four high01 = __builtin_shuffle(x[0], x[1], Places{2, 6, 3, 7});
      const Four high23 = __builtin_shuffle(x[2], x[3], Places{2, 6, 3, 7});
      const Four y[4] = {__builtin_shuffle(low01, low23, Places{0, 1, 4, 5}),
                         __builtin_shuffle(low01, low23, Places{2, 3, 6, 7}),
                         __builtin_shuffle(high01, high23, Places{0, 1, 4, 5}),
                         __builtin_shuffle(high01, high23, Places{2, 3, 6, 7})};
      for (int i = 0; i < 4; ++i) {
        __builtin_memcpy(to + (c + i) * to_stride + r, &y[i], sizeof(Four));
      }
    }
    for (int64_t c = whole_cols; c < cols; ++c) {
      for (int i = 0; i < 4; ++i) single(r + i, c);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) single(r, c);
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
  for (int64_t p = 0; p < n; ++p) to[p] = from != nullptr ? from[p] : 0.0f;
}

inline float score_scale(const PackedSpan& span) {
  return 1.0f / __builtin_sqrtf(static_cast<float>(span.head_dim));
}

// Blocks of rows, of all heads, keep a running softmax while blocks of keys come by.
template <typename Unit>
struct Forward {
  struct State {
    typename Unit::Rows q;  // scaled
    float* mixed;           // [padded][kBlockRows]: sum of weights times values so far
    float* most;            // [kBlockRows]: the largest score so far
    float* sum;             // [kBlockRows]: of weights, e to the score less the largest
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
    float* most = from.take<float>(kBlockRows);
    return {q, mixed, most, from.take<float>(kBlockRows)};
  }
  // Calls f(state, first row, rows, head) for each block.
  template <typename F>
  void for_blocks(F f) const {
    Scratch states = scratch;
    for (int64_t row = task.begin; row < task.end; row += kBlockRows) {
      for (int64_t head = 0; head < span.group; ++head) {
        f(take_state(states), row, least(kBlockRows, task.end - row), head);
      }
    }
  }

  void run() {
    for_blocks([&](State s, int64_t row, int64_t rows, int64_t head) {
      s.q.take({span.q.data + row * span.q.stride + head * d, span.q.stride}, rows,
               score_scale(span));
      clear(s.mixed, padded * kBlockRows);
      for (int64_t r = 0; r < kBlockRows; ++r) {
        s.most[r] = kLowest;
        s.sum[r] = 0.0f;
      }
    });
    const int64_t seen = span.causal ? task.end : span.count;
    for (int64_t p = 0; p < seen; p += kBlockKeys) {
      const int64_t n = least(kBlockKeys, seen - p);
      keys.take({span.k.data + p * span.k.stride, span.k.stride}, n);
      values.take({span.v.data + p * span.v.stride, span.v.stride}, n);
      take_bias(span.key_bias != nullptr ? span.key_bias + p : nullptr, n, bias);
      for_blocks([&](State s, int64_t row, int64_t rows, int64_t) {
        const Meeting m(rows, n, span.causal, row - p);
        if (m.keys == 0) return;
        Unit::scores(keys, 0, s.q, m, weights.scores);
        weigh(s, m);
        Unit::add_keys(values, 0, weights, m, s.mixed);
      });
    }
    for_blocks([&](State s, int64_t row, int64_t rows, int64_t head) {
      for (int64_t r = 0; r < rows; ++r) {
        task.log_sums.data[(row + r) * task.log_sums.stride + head] =
            s.most[r] + __builtin_logf(s.sum[r]);
      }
      for (int64_t lane = 0; lane < up_to(rows, W); lane += W) {
        const V sum = load(s.sum + lane);
        for (int64_t i = 0; i < d; ++i) {
          float* at = s.mixed + i * kBlockRows + lane;
          store(at, load(at) / sum);
        }
      }
      turn(s.mixed, kBlockRows, d, rows, 1.0f, task.out.data + row * task.out.stride + head * d,
           task.out.stride);
    });
  }

  // Turns scores into weights, and brings what there is down to the new maximum.
  void weigh(const State& s, const Meeting& m) {
    for (int64_t lane = 0; lane < up_to(m.rows, Unit::kStep); lane += W) {
      const LaneRows at(m, lane);
      const auto score = [&](int64_t p) __attribute__((always_inline)) {
        return load(weights.scores + p * kBlockRows + lane) + all(bias[p]);
      };
      const V before = load(s.most + lane);
      V most[4] = {before, before, before, before};  // so that none waits for the other
      int64_t p = 0;
      for (; p + 4 <= at.whole; p += 4) {
        for (int j = 0; j < 4; ++j) most[j] = max(score(p + j), most[j]);
      }
      for (; p < at.end; ++p) most[0] = max(at.if_seen(p, score(p), most[0]), most[0]);
      const V now = max(max(most[0], most[1]), max(most[2], most[3]));
      store(s.most + lane, now);

      V sums[2] = {};
      for (p = 0; p + 2 <= at.whole; p += 2) {
        const V even = exp_of_negative(score(p) - now), odd = exp_of_negative(score(p + 1) - now);
        sums[0] += even;
        sums[1] += odd;
        weights.keep(p, lane, even, odd);
      }
      for (; p < at.end; p += 2) {
        const V even = at.if_seen(p, exp_of_negative(score(p) - now), V{});
        const V odd = at.if_seen(p + 1, exp_of_negative(score(p + 1) - now), V{});
        sums[0] += even;
        sums[1] += odd;
        weights.keep(p, lane, even, odd);
      }
      for (; p < up_to(m.keys, Unit::kKeyStep); p += 2) weights.keep(p, lane, V{}, V{});

      const V scale = exp_of_negative(before - now);
      store(s.sum + lane, fma(load(s.sum + lane), scale, sums[0] + sums[1]));
      for (int64_t i = 0; i < d; ++i) {
        float* mixed = s.mixed + i * kBlockRows + lane;
        store(mixed, load(mixed) * scale);
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
  typename Unit::Rows q, dout;  // q is scaled
  typename Unit::template Weights</*kForKeys=*/false, /*kForRows=*/true> weights;
  typename Unit::template Weights</*kForKeys=*/true, /*kForRows=*/true> dscores;
  float* const dk;  // [keys][padded]
  float* const dv;
  float* const dq;        // [padded][kBlockRows], not scaled yet
  float* const log_sums;  // [kBlockRows]
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
        take_rows(row, rows, head);
        for (int64_t p = 0; p < n; p += kBlockKeys) {
          const Meeting m(rows, least(kBlockKeys, n - p), span.causal, row - (task.begin + p));
          if (m.keys == 0) break;  // nor any later ones
          meet(p, m);
        }
        turn(dq, kBlockRows, d, rows, score_scale(span),
             task.dq.data + (row - first) * task.dq.stride + head * d, task.dq.stride);
      }
    }
    for (int64_t p = 0; p < n; ++p) {
      float* const to_k = task.dk.data + (task.begin + p) * task.dk.stride;
      float* const to_v = task.dv.data + (task.begin + p) * task.dv.stride;
      for (int64_t i = 0; i < d; ++i) to_k[i] = dk[p * padded + i];
      for (int64_t i = 0; i < d; ++i) to_v[i] = dv[p * padded + i];
    }
  }

  void take_rows(int64_t row, int64_t rows, int64_t head) {
    const auto from = [&](PackedRows x) {
      return PackedRows{x.data + row * x.stride + head * d, x.stride};
    };
    q.take(from(span.q), rows, score_scale(span));
    dout.take(from(task.dout), rows, 1.0f);
    clear(dq, padded * kBlockRows);
    const PackedRows gradient = from(task.dout), out = from(task.out);
    for (int64_t r = 0; r < kBlockRows; ++r) {
      // What fills up the lanes weighs nothing.
      log_sums[r] =
          r < rows ? task.log_sums.data[(row + r) * task.log_sums.stride + head] : kLargest;
      deltas[r] =
          r < rows ? dot(gradient.data + r * gradient.stride, out.data + r * out.stride, d) : 0.0f;
    }
  }

  void meet(int64_t p, const Meeting& m) {
    Unit::scores(keys, p, q, m, weights.scores);
    Unit::scores(values, p, dout, m, dscores.scores);
    differentiate(bias + p, m);
    Unit::add_rows(weights, dout, m, dv + p * padded);
    Unit::add_rows(dscores, q, m, dk + p * padded);
    Unit::add_keys(keys, p, dscores, m, dq);
  }

  // Turns scores into weights, and dout . v into the gradients of scores.
  void differentiate(const float* key_bias, const Meeting& m) {
    for (int64_t lane = 0; lane < up_to(m.rows, Unit::kStep); lane += W) {
      const LaneRows at(m, lane);
      const V log_sum = load(log_sums + lane), delta = load(deltas + lane);
      const auto weight = [&](int64_t p) __attribute__((always_inline)) {
        const V score = load(weights.scores + p * kBlockRows + lane) + all(key_bias[p]);
        return exp_of_negative(score - log_sum);
      };
      const auto dscore = [&](int64_t p, V w) __attribute__((always_inline)) {
        return w * (load(dscores.scores + p * kBlockRows + lane) - delta);
      };
      int64_t p = 0;
      for (; p + 2 <= at.whole; p += 2) {
        const V even = weight(p), odd = weight(p + 1);
        dscores.keep(p, lane, dscore(p, even), dscore(p + 1, odd));
        weights.keep(p, lane, even, odd);
      }
      for (; p < at.end; p += 2) {
        const V even = weight(p), odd = weight(p + 1);
        dscores.keep(p, lane, at.if_seen(p, dscore(p, even), V{}),
                     at.if_seen(p + 1, dscore(p + 1, odd), V{}));
        weights.keep(p, lane, at.if_seen(p, even, V{}), at.if_seen(p + 1, odd, V{}));
      }
      for (; p < up_to(m.keys, Unit::kKeyStep); p += 2) {
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
