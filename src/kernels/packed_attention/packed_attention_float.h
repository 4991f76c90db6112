// Products of floats for packed attention, over a vector of W floats: its functions for the
// instruction set that the including file names, and whose table it names DROVER_PACKED_FUNCTIONS.
//
// All three products are one: some rows of a, a number at a time, times rows of b, which lie as
// vectors. Six rows and four vectors at a time fill 24 of 32 registers with sums (two vectors: 12
// of 16), and for each load there are more than two multiply-adds.
#include "kernels/packed_attention/packed_attention_impl.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr int kVectors = W == 16 ? 4 : 2;

// to[r, j] = sum over k < n of a[r, k] b[k, j], or that added to it, for R rows and N vectors.
// a[r, k] lies at r * stride + k, or if it is kTurned at k * stride + r.
template <int R, int N, bool kTurned, bool kAdd>
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t n,
              float* to, int64_t to_stride) {
  V sum[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[r][v] = V{};
  }
  for (int64_t k = 0; k < n; ++k) {
    V row[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) row[v] = load(b + k * b_stride + v * W);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const V x = all(a[kTurned ? k * a_stride + r : r * a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[r][v] = fma(x, row[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      float* at = to + r * to_stride + v * W;
      store(at, kAdd ? load(at) + sum[r][v] : sum[r][v]);
    }
  }
}

// Calls f(Constant<rows>, r) for groups that cover [0, n).
template <typename F>
[[gnu::always_inline]] inline void in_groups(int64_t n, F f) {
  int64_t r = 0;
  for (; r + 6 <= n; r += 6) f(Constant<6>{}, r);
  for (; r + 3 <= n; r += 3) f(Constant<3>{}, r);
  for (; r < n; ++r) f(Constant<1>{}, r);
}

// Calls f(Constant<vectors>, j) for pieces of at most kMost vectors that cover [begin, end),
// multiples of 16.
template <int kMost, typename F>
[[gnu::always_inline]] inline void in_pieces(int64_t begin, int64_t end, F f) {
  int64_t j = begin;
  for (; j + kMost * W <= end; j += kMost * W) f(Constant<kMost>{}, j);
  if constexpr (W == 16) {
    if (j + 32 <= end) {
      f(Constant<2>{}, j);
      j += 32;
    }
    if (j < end) f(Constant<1>{}, j);
  }
}

struct FloatUnit {
  static constexpr int64_t kStep = 16;  // to which rows and components are filled up
  static constexpr int64_t kKeyStep = 2;
  static constexpr int kTerms = 6;  // of exponentials

  // Keys are used where they lie.
  struct Keys {
    int64_t d;
    PackedRows at{};
    Keys(Scratch&, int64_t head_dim, int64_t, bool, bool) : d(head_dim) {}
    void take(PackedRows from, int64_t) { at = from; }
    const float* key(int64_t p) const { return at.data + p * at.stride; }
  };

  struct Rows {
    int64_t d, padded;
    float* turned;  // [d][kBlockRows]
    float* plain;   // [kBlockRows][padded], or null

    Rows(Scratch& scratch, int64_t head_dim, bool with_plain)
        : d(head_dim),
          padded(up_to(d, kStep)),
          turned(scratch.take<float>(d * kBlockRows)),
          plain(with_plain ? scratch.take<float>(kBlockRows * padded) : nullptr) {}

    void take(PackedRows from, int64_t rows, float scale) {
      for (int64_t i = 0; i < d && rows < kBlockRows; ++i) {
        clear(turned + i * kBlockRows + rows, kBlockRows - rows);
      }
      if (plain == nullptr) return turn(from.data, from.stride, rows, d, scale, turned, kBlockRows);
      for (int64_t r = 0; r < rows; ++r) {
        float* to = plain + r * padded;
        for (int64_t i = 0; i < d; ++i) to[i] = from.data[r * from.stride + i] * scale;
        clear(to + d, padded - d);
      }
      turn(plain, padded, rows, d, 1.0f, turned, kBlockRows);
    }
  };

  // Weights take the place of scores.
  template <bool, bool>
  struct Weights {
    float* scores;  // [kBlockKeys][kBlockRows]
    explicit Weights(Scratch& scratch) : scores(scratch.take<float>(kBlockKeys * kBlockRows)) {}

    [[gnu::always_inline]] void keep(int64_t p, int64_t lane, V even, V odd) {
      store(scores + p * kBlockRows + lane, even);
      store(scores + (p + 1) * kBlockRows + lane, odd);
    }
  };

  static void scores(const Keys& keys, int64_t first, const Rows& rows, const Meeting& m,
                     float* to) {
    in_groups(m.keys, [&](auto group, int64_t p) {
      const int64_t begin = m.first_row(p) / kStep * kStep;
      in_pieces<kVectors>(begin, up_to(m.rows, kStep), [&](auto vectors, int64_t r) {
        multiply<decltype(group)::value, decltype(vectors)::value, false, false>(
            keys.key(first + p), keys.at.stride, rows.turned + r, kBlockRows, rows.d,
            to + p * kBlockRows + r, kBlockRows);
      });
    });
  }

  template <typename Weights>
  static void add_keys(const Keys& keys, int64_t first, const Weights& weights, const Meeting& m,
                       float* to) {
    const auto piece = [&](auto vectors, int64_t r) {
      constexpr int N = decltype(vectors)::value;
      const int64_t n = m.end_key(r + N * W - 1);
      in_groups(keys.d, [&](auto group, int64_t i) {
        multiply<decltype(group)::value, N, true, true>(keys.key(first) + i, keys.at.stride,
                                                        weights.scores + r, kBlockRows, n,
                                                        to + i * kBlockRows + r, kBlockRows);
      });
    };
    // Where some rows see less, in smaller pieces that compute less for nobody.
    if (m.end_key(0) < m.keys) {
      in_pieces<2>(0, up_to(m.rows, kStep), piece);
    } else {
      in_pieces<kVectors>(0, up_to(m.rows, kStep), piece);
    }
  }

  template <typename Weights>
  static void add_rows(const Weights& weights, const Rows& rows, const Meeting& m, float* to) {
    in_groups(m.keys, [&](auto group, int64_t p) {
      const int64_t begin = m.first_row(p);
      in_pieces<kVectors>(0, rows.padded, [&](auto vectors, int64_t i) {
        multiply<decltype(group)::value, decltype(vectors)::value, false, true>(
            weights.scores + p * kBlockRows + begin, kBlockRows,
            rows.plain + begin * rows.padded + i, rows.padded, m.rows - begin,
            to + p * rows.padded + i, rows.padded);
      });
    });
  }
};

void forward(const PackedForward& task) { Forward<FloatUnit>(task).run(); }
void backward(const PackedBackward& task) { Backward<FloatUnit>(task).run(); }

}  // namespace
}  // namespace drover::DROVER_ATTENTION_ISA

namespace drover {

const PackedFunctions DROVER_PACKED_FUNCTIONS = {
    DROVER_ATTENTION_ISA::forward, DROVER_ATTENTION_ISA::backward,
    DROVER_ATTENTION_ISA::forward_scratch<DROVER_ATTENTION_ISA::FloatUnit>,
    DROVER_ATTENTION_ISA::backward_scratch<DROVER_ATTENTION_ISA::FloatUnit>};

}  // namespace drover
