// The body of attention over one tile of queries, written once over a vector of W floats and
// compiled once per instruction set. attention.h says what every result is, to the bit; W never
// shows in it, since a lane of a vector is always a sum of its own.
//
// Per page: scores of all rows, block by block of keys; then the softmax of each row; then the
// weighted sums, block by block of values. Whatever a block is widened to stays in the L1 or L2
// cache while all rows meet it. Rows are taken six at a time, as many as the registers hold sums
// for, so that one load of a key or value serves six multiply-adds. Pages of int8 meet rows of
// whole numbers (attention_int8.h).

#include "kernels/attention/attention_int8.h"
#include "kernels/attention/attention_task.h"
#include "kernels/attention/attention_vector.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr int kRows = 6;
constexpr int kVectors = W == 16 ? 4 : 2;  // 24 of 32 registers, or 12 of 16, hold sums

// What a block of a page is read with. One token's pass over a long past waits for memory alone,
// and the processor's own prefetchers stop at every 4 KiB: asking 8 KiB ahead, into the L2 cache
// and over to the next page in time, raised a core from 7.8 to 11 GB/s (Xeon, 4th generation; a
// loop that only reads: 13 to 15).
struct Ahead {
  static constexpr uintptr_t kBytes = 8192;
  uintptr_t end;   // of what is filled and lies together,
  uintptr_t wrap;  // and from there to what is read next

  Ahead(const void* end, const void* next)
      : end(reinterpret_cast<uintptr_t>(end)),
        wrap(reinterpret_cast<uintptr_t>(next) - this->end) {}

  template <typename T>
  [[gnu::always_inline]] void operator()(const T* p, uintptr_t n) const {
    uintptr_t at = reinterpret_cast<uintptr_t>(p) + kBytes;
    at += at < end ? 0 : wrap;
    for (uintptr_t i = 0; i < n * sizeof(T); i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(at + i), /*for reading*/ 0, /*L2*/ 2);
    }
  }
};

// For blocks that are in a cache already.
struct NotAhead {
  template <typename T>
  [[gnu::always_inline]] void operator()(const T*, uintptr_t) const {}
};

// Which of a row's positions lie before `end`, counted from `begin`, at most `most`.
[[gnu::always_inline]] inline int64_t count(int64_t end, int64_t begin, int64_t most) {
  const int64_t n = end - begin;
  return n < 0 ? 0 : n > most ? most : n;
}

// Calls f(Constant<n>) for n in [1, kRows].
template <typename F>
[[gnu::always_inline]] inline void with_rows(int64_t n, F f) {
  switch (n) {
    case 1:
      return f(Constant<1>{});
    case 2:
      return f(Constant<2>{});
    case 3:
      return f(Constant<3>{});
    case 4:
      return f(Constant<4>{});
    case 5:
      return f(Constant<5>{});
    case 6:
      return f(Constant<6>{});
  }
}

// Calls f(Constant<vectors>, i) for pieces that cover [0, n) and reach no further than the last
// vector: as wide as the registers allow, then one of just enough vectors.
template <typename F>
[[gnu::always_inline]] inline void in_pieces(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kVectors * W <= n; i += kVectors * W) f(Constant<kVectors>{}, i);
  if (kVectors == 4 && n - i > 3 * W) return f(Constant<4>{}, i);
  if (kVectors == 4 && n - i > 2 * W) return f(Constant<3>{}, i);
  if (n - i > W) return f(Constant<2>{}, i);
  if (n > i) f(Constant<1>{}, i);
}

// scores[r * kPageTokens + j] = Σ_i q[i * R + r] * keys[i * kBlockTokens + j] for j < n; computes
// whole vectors, so what follows is meaningless.
template <int R, typename T, typename Fetch>
void score_block(const float* q, const T* keys, int64_t d, int64_t n, float* scores, Fetch fetch) {
  in_pieces(
      n, [&](auto vectors, int64_t j) __attribute__((always_inline)) {
        constexpr int N = decltype(vectors)::value;
        V sum[R][N] = {};
        for (int64_t i = 0; i < d; ++i) {
          V key[N];
          fetch(keys + i * kBlockTokens + j, N * W);
          for (int v = 0; v < N; ++v) key[v] = load(keys + i * kBlockTokens + j + v * W);
          for (int r = 0; r < R; ++r) {
            const V query = all(q[i * R + r]);
            for (int v = 0; v < N; ++v) sum[r][v] = fma(query, key[v], sum[r][v]);
          }
        }
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < N; ++v) store(scores + r * kPageTokens + j + v * W, sum[r][v]);
        }
      });
}

// out[r * stride + i] += Σ_j weights[r * kPageTokens + j] * values[j * width + i] for j in
// [begin, end), i < width.
template <int R, typename T, typename Fetch>
void weigh_block(const float* weights, const T* values, int64_t width, int64_t begin, int64_t end,
                 float* out, int64_t stride, Fetch fetch) {
  in_pieces(
      width, [&](auto vectors, int64_t i) __attribute__((always_inline)) {
        constexpr int N = decltype(vectors)::value;
        V sum[R][N];
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < N; ++v) sum[r][v] = load(out + r * stride + i + v * W);
        }
        for (int64_t j = begin; j < end; ++j) {
          V value[N];
          fetch(values + j * width + i, N * W);
          for (int v = 0; v < N; ++v) value[v] = load(values + j * width + i + v * W);
          for (int r = 0; r < R; ++r) {
            const V weight = all(weights[r * kPageTokens + j]);
            for (int v = 0; v < N; ++v) sum[r][v] = fma(weight, value[v], sum[r][v]);
          }
        }
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < N; ++v) store(out + r * stride + i + v * W, sum[r][v]);
        }
      });
}

// For each piece of columns of a laid out block (attention_int8.h) calls finish(j, sums), `sums`
// being vectors of Σ_i row[i] * block[i, column] of each row, for columns from j on and i < depth.
// Row r is at rows + r * stride.
template <int R, typename F>
void multiply_block(const std::byte* rows, int64_t stride, int64_t next_digit, const int32_t* block,
                    int64_t depth, int64_t columns, F finish) {
  const int64_t lanes = (depth + kDepth - 1) / kDepth;
  in_pieces(
      columns, [&](auto vectors, int64_t j) __attribute__((always_inline)) {
        constexpr int N = decltype(vectors)::value;
        I sum[R][N] = {};
        for (int digit = 0; digit < kDigits; ++digit) {
          if (digit > 0) {
            for (int r = 0; r < R; ++r) {
              for (int v = 0; v < N; ++v) sum[r][v] <<= 8;
            }
          }
          const std::byte* row = rows + digit * next_digit;
          for (int64_t g = 0; g < lanes; ++g) {
            I x[N];
            for (int v = 0; v < N; ++v) x[v] = load_lanes(block + g * kBlockTokens + j + v * W);
            for (int r = 0; r < R; ++r) {
              const I y = I{} + load_as<int32_t>(row + r * stride + g * 4);
              for (int v = 0; v < N; ++v) sum[r][v] = multiply_add(sum[r][v], x[v], y);
            }
          }
        }
        finish(j, sum);
      });
}

// The largest of n scores; the row is filled up to a multiple of 16 with what changes nothing.
inline float largest(float* scores, int64_t n) {
  for (int64_t j = n; j % 16 != 0; ++j) scores[j] = -__builtin_inff();
  V lanes[16 / W];
  for (V& lane : lanes) lane = all(-__builtin_inff());
  for (int64_t j = 0; j < n; j += 16) {
    for (int v = 0; v < 16 / W; ++v) lanes[v] = max(load(scores + j + v * W), lanes[v]);
  }
  return join_all(
      lanes, [](V a, V b) __attribute__((always_inline)) { return max(a, b); })[0];
}

// Turns n scores, filled up, into weights e^(score - maximum); returns their sum. `scale`, if it is
// there, multiplies them after that.
inline float softmax(float* scores, int64_t n, float maximum, const float* scale) {
  V sums[16 / W] = {};
  const auto sixteen = [&](int64_t j, bool whole) __attribute__((always_inline)) {
    for (int v = 0; v < 16 / W; ++v) {
      store(scores + j + v * W, exp_of_negative(load(scores + j + v * W) - all(maximum)));
    }
    for (int64_t i = n; !whole && i < j + 16; ++i) scores[i] = 0.0f;
    for (int v = 0; v < 16 / W; ++v) {
      const V weight = load(scores + j + v * W);
      sums[v] += weight;
      if (scale != nullptr) store(scores + j + v * W, weight * load(scale + j + v * W));
    }
  };
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) sixteen(j, /*whole=*/true);
  if (j < n) sixteen(j, /*whole=*/false);
  return join_all(
      sums, [](V a, V b) __attribute__((always_inline)) { return a + b; })[0];
}

// Merges what a later page gave a row into what all before gave it.
inline void merge(float* total, const float* page, int64_t padded) {
  const float maximum = max(page[padded], total[padded]);
  const float keep = exp_of_negative(total[padded] - maximum);
  const float add = exp_of_negative(page[padded] - maximum);
  for (int64_t i = 0; i < padded; i += W) {
    store(total + i, fma(load(page + i), all(add), load(total + i) * all(keep)));
  }
  total[padded] = maximum;
  total[padded + 1] = fma(page[padded + 1], add, total[padded + 1] * keep);
}

// A row's result, from its state.
inline void finish(const float* state, int64_t padded, int64_t d, float* out) {
  const float sum = state[padded + 1];
  int64_t i = 0;
  for (; i + W <= d; i += W) store(out + i, load(state + i) / all(sum));
  for (; i < d; ++i) out[i] = state[i] / sum;
}

template <typename T>
constexpr bool kIsInt8 = false;
template <>
constexpr bool kIsInt8<int8_t> = true;

// One tile on its way through the pages. T: the type of the cache.
template <typename T>
struct Tile {
  const AttentionTask& task;
  const int64_t d, padded, rows, state;
  // Scaled queries, groups of up to kRows rows, [d][rows of the group] each. int8: rows as
  // make_row() leaves them, followed by their RowUnit.
  float* const q;
  float* const scores;  // [rows, kPageTokens]
  float* const page;    // [rows, state]: what the page at hand gives
  float* const span;    // [rows, state]: the span at hand so far
  float* const total;   // [rows, state]: all spans so far
  float* const wide;    // the block at hand as floats, or laid out

  explicit Tile(const AttentionTask& t)
      : task(t),
        d(t.head_dim),
        padded(t.layout.padded_dim),
        rows(t.tokens * t.group),
        state(row_state(padded)),
        q(t.scratch),
        scores(q + rows * query_row(padded)),
        page(scores + rows * kPageTokens),
        span(page + rows * state),
        total(span + rows * state),
        wide(total + rows * state) {}

  // How many positions a row attends to, all pages together.
  int64_t positions(int64_t row) const { return task.seen + row / task.group * task.step; }

  const float* query(int64_t row) const {
    return task.q + row / task.group * task.q_stride + row % task.group * d;
  }

  // All queries are asked for first: tokens lie far apart, and the processor's own prefetchers do
  // not see from one to the next.
  void expect_queries() const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(query(row) + i);
    }
  }

  void take_queries() {
    expect_queries();
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
    for (int64_t row = 0; kIsInt8<T> && row < rows; ++row) {
      const float* from = query(row);
      const int64_t end = whole_blocks(d);
      for (int64_t i = 0; i < end; ++i) wide[i] = i < d ? from[i] * scale : 0.0f;
      const int64_t digit_bytes = kRowBytes / kDigits;
      query_unit(row) = make_row(wide, end, query_digits(row), 64 * digit_bytes, end * digit_bytes);
    }
    for (int64_t row = 0; !kIsInt8<T> && row < rows; ++row) {
      const int64_t first = row / kRows * kRows, n = count(rows, first, kRows);
      const float* from = query(row);
      float* to = q + first * d + (row - first);
      for (int64_t i = 0; i < d; ++i) to[i * n] = from[i] * scale;
    }
  }

  // int8: the row of a query, and of the weights on a page.
  std::byte* query_digits(int64_t row) const {
    return reinterpret_cast<std::byte*>(q + row * query_row(padded));
  }
  RowUnit& query_unit(int64_t row) const {
    return *reinterpret_cast<RowUnit*>(q + row * query_row(padded) + whole_blocks(padded));
  }
  std::byte* weight_digits(int64_t row) const {
    return reinterpret_cast<std::byte*>(scores + row * kPageTokens);
  }
  // Beside maximum and sum of what a page gives a row.
  RowUnit& weight_unit(float* to, int64_t row) const {
    return *reinterpret_cast<RowUnit*>(to + row * state + padded + 2);
  }
  const int32_t* laid_out() const { return reinterpret_cast<const int32_t*>(wide); }

  // Calls f with a block of n values: as it lies if few rows meet it, else as floats, widened once
  // for all of them.
  template <typename F>
  void with_block(const T* block, int64_t n, Ahead ahead, F f) {
    if (rows <= kRows) return f(block, ahead);
    const float* floats = as_floats(block, n);
    f(floats, NotAhead{});
  }
  const float* as_floats(const float* block, int64_t) { return block; }
  template <typename S>
  const float* as_floats(const S* block, int64_t n) {
    float* to = wide;
    for (int64_t i = 0; i < n; i += W) store(to + i, load(block + i));
    return to;
  }

  // The first position of the k'th page to visit, and the part of the page that is this kv head's.
  int64_t page_begin(int64_t k) const {
    return (task.chosen != nullptr ? task.chosen[k] : k) * kPageTokens;
  }
  const std::byte* head(int64_t k) const {
    return task.pages[task.chosen != nullptr ? task.chosen[k] : k] + task.head_offset;
  }
  const float* scales(int64_t k, int64_t offset) const {
    return task.type == KvType::kInt8 ? reinterpret_cast<const float*>(head(k) + offset) : nullptr;
  }

  // Finds maximum and sum of the weights of each row that reaches the k'th page; leaves the weights
  // in scores. `next` is what will be read after the keys.
  void weigh_keys(int64_t k, float* to, const void* next) {
    const T* keys = reinterpret_cast<const T*>(head(k));
    const float* key_scales = scales(k, task.layout.key_scales);
    const float* value_scales = scales(k, task.layout.value_scales);
    const int64_t begin = page_begin(k);
    const int64_t filled = count(positions(rows - 1), begin, kPageTokens);

    const Ahead ahead(keys + whole_blocks(filled) * d, next);
    for (int64_t offset = 0; offset < filled; offset += kBlockTokens) {
      // The row of a group that sees most decides; what the others must not see their softmax
      // leaves out.
      const auto groups = [&](auto f) __attribute__((always_inline)) {
        for (int64_t row = 0; row < rows; row += kRows) {
          const int64_t group = count(rows, row, kRows);
          const int64_t n = count(positions(row + group - 1), begin + offset, kBlockTokens);
          if (n == 0) continue;
          with_rows(group, [&](auto r) { f(r, row, n, scores + row * kPageTokens + offset); });
        }
      };
      if constexpr (kIsInt8<T>) {
        lay_out(keys + offset * d, kBlockTokens, d, reinterpret_cast<int32_t*>(wide), ahead);
        groups([&](auto r, int64_t row, int64_t n, float* to) {
          score_laid_out<decltype(r)::value>(row, key_scales + offset, n, to);
        });
      } else {
        with_block(keys + offset * d, kBlockTokens * d, ahead, [&](const auto* block, auto fetch) {
          groups([&](auto r, int64_t row, int64_t n, float* to) {
            score_block<decltype(r)::value>(q + row * d, block, d, n, to, fetch);
          });
        });
      }
    }
    // Two passes, so that one row need not wait for the maximum of the other.
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t n = count(positions(row), begin, kPageTokens);
      to[row * state + padded] = largest(scores + row * kPageTokens, n);
    }
    for (int64_t row = 0; row < rows; ++row) {
      float* mine = to + row * state + padded;
      const int64_t n = count(positions(row), begin, kPageTokens);
      mine[1] = softmax(scores + row * kPageTokens, n, mine[0], value_scales);
    }
  }

  // Scores of R rows from `row` on, of the laid out block of keys with these scales.
  template <int R>
  void score_laid_out(int64_t row, const float* key_scales, int64_t n, float* to) const {
    const int64_t next_digit = whole_blocks(d) * (kRowBytes / kDigits);
    multiply_block<R>(
        query_digits(row), query_row(padded) * 4, next_digit, laid_out(), d,
        n, [&](int64_t j, auto& sums) __attribute__((always_inline)) {
          for (int r = 0; r < R; ++r) {
            const RowUnit unit = query_unit(row + r);
            int v = 0;
            for (const I sum : sums[r]) {
              const V s = __builtin_convertvector(wrapping_add(sum, I{} + unit.missing), V) *
                          all(unit.unit);
              store(to + r * kPageTokens + j + v, s * load(key_scales + j + v));
              v += W;
            }
          }
        });
  }

  // Finds what the k'th page gives each row that reaches it.
  void visit(int64_t k, float* to) {
    const T* values = reinterpret_cast<const T*>(head(k) + task.layout.values);
    const int64_t begin = page_begin(k);
    const int64_t filled = count(positions(rows - 1), begin, kPageTokens);
    weigh_keys(k, to, values);
    for (int64_t row = 0; kIsInt8<T> && row < rows; ++row) {
      float* weights = scores + row * kPageTokens;
      const int64_t n = count(positions(row), begin, kPageTokens), end = whole_blocks(filled);
      for (int64_t i = n; i < end; ++i) weights[i] = 0.0f;
      weight_unit(to, row) = make_row(weights, end, weight_digits(row), 64 * kRowBytes, 64);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < padded; i += W) store(to + row * state + i, V{});
    }
    for (int64_t panel = 0; panel < padded; panel += kPanelWidth) {
      const int64_t width = count(padded, panel, kPanelWidth);
      const T* mine = values + panel * kPageTokens;
      const void* next = panel + width < padded  ? mine + kPageTokens * width
                         : k + 1 < task.end_page ? head(k + 1)
                                                 : static_cast<const void*>(mine);
      const Ahead ahead(mine + filled * width, next);
      for (int64_t offset = 0; offset < filled; offset += kBlockTokens) {
        if constexpr (kIsInt8<T>) {
          const int64_t n = count(filled, offset, kBlockTokens);
          lay_out(mine + offset * width, width, n, reinterpret_cast<int32_t*>(wide), ahead);
          weigh_laid_out(width, begin, offset, to + panel);
        } else {
          with_block(mine + offset * width, kBlockTokens * width, ahead,
                     [&](const auto* block, auto fetch) {
                       weigh(block, width, begin, offset, to + panel, fetch);
                     });
        }
      }
    }
    for (int64_t row = 0; kIsInt8<T> && row < rows; ++row) {
      const RowUnit unit = weight_unit(to, row);
      for (int64_t i = 0; i < padded; i += W) {
        float* at = to + row * state + i;
        const I sum = wrapping_add(load_as<I>(at), I{} + unit.missing);
        store(at, __builtin_convertvector(sum, V) * all(unit.unit));
      }
    }
  }

  // Adds the laid out block of values to the whole numbers of all rows. What a row does not see has
  // a weight of zero.
  void weigh_laid_out(int64_t width, int64_t begin, int64_t offset, float* to) {
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t group = count(rows, row, kRows);
      const int64_t n = count(positions(row + group - 1), begin + offset, kBlockTokens);
      if (n == 0) continue;
      const std::byte* weights = weight_digits(row) + offset * kRowBytes;
      with_rows(group, [&](auto rows_at_once) {
        constexpr int R = decltype(rows_at_once)::value;
        multiply_block<R>(
            weights, kPageTokens * 4, 64, laid_out(), n,
            width, [&](int64_t j, auto& sums) __attribute__((always_inline)) {
              for (int r = 0; r < R; ++r) {
                float* at = to + (row + r) * state + j;
                for (const I sum : sums[r]) {
                  const I added = wrapping_add(load_as<I>(at), sum);
                  __builtin_memcpy(at, &added, sizeof(added));
                  at += W;
                }
              }
            });
      });
    }
  }

  // Adds a block of values to all rows. A position that a row does not see may hold anything, a NaN
  // too, which a weight of zero would not take away: rows run together as far as all of them see,
  // and alone from there.
  template <typename S, typename Fetch>
  void weigh(const S* block, int64_t width, int64_t begin, int64_t offset, float* to, Fetch fetch) {
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t group = count(rows, row, kRows);
      const float* weights = scores + row * kPageTokens + offset;
      const int64_t common = count(positions(row), begin + offset, kBlockTokens);
      if (common > 0) {
        with_rows(group, [&](auto r) {
          weigh_block<decltype(r)::value>(weights, block, width, 0, common, to + row * state, state,
                                          fetch);
        });
      }
      for (int64_t r = 1; r < group; ++r) {
        const int64_t n = count(positions(row + r), begin + offset, kBlockTokens);
        if (n == common) continue;
        weigh_block<1>(weights + r * kPageTokens, block, width, common, n, to + (row + r) * state,
                       state, NotAhead{});
      }
    }
  }

  void finish_rows(const float* states) const {
    for (int64_t row = 0; row < rows; ++row) {
      const float* mine = states + row * state;
      finish(mine, padded, d, task.out + row / task.group * task.out_stride + row % task.group * d);
      if (task.mass == nullptr) continue;
      task.mass[2 * row] = mine[padded];
      task.mass[2 * row + 1] = mine[padded + 1];
    }
  }

  // Merges what the k'th page, or what begins with it, gives into what there is, for the rows that
  // reach it.
  void merge_rows(float* sum, const float* part, int64_t k) const {
    for (int64_t row = 0; row < rows; ++row) {
      if (positions(row) > page_begin(k)) merge(sum + row * state, part + row * state, padded);
    }
  }

  float* part(int64_t k) const { return task.parts + k / task.part_pages * rows * state; }

  void run() {
    take_queries();
    run([&](int64_t k, float* to) { visit(k, to); });
  }

  // visit(k, to) finds what the k'th page gives each row that reaches it.
  template <typename Visit>
  void run(Visit visit) {
    const bool by_page = task.parts != nullptr && task.part_pages == 1;
    for (int64_t first = task.first_page; first < task.end_page;) {
      const int64_t begin = first / kSpanPages * kSpanPages;
      const int64_t end = begin + count(task.end_page, begin, kSpanPages);
      // The first span is the start of all, the first page that of its span.
      float* sum = task.parts != nullptr ? part(begin) : begin == 0 ? total : span;
      for (int64_t k = first; k < end; ++k) {
        if (by_page) {
          visit(k, part(k));
          continue;
        }
        visit(k, k == begin ? sum : page);
        if (k > begin) merge_rows(sum, page, k);
      }
      if (sum == span) merge_rows(total, span, begin);
      first = end;
    }
    if (task.parts == nullptr) finish_rows(total);
  }

  void run_merge() {
    for (int64_t begin = 0; begin < task.end_page; begin += kSpanPages) {
      const int64_t end = begin + count(task.end_page, begin, kSpanPages);
      for (int64_t k = begin + task.part_pages; k < end; k += task.part_pages) {
        merge_rows(part(begin), part(k), k);
      }
      if (begin > 0) merge_rows(part(0), part(begin), begin);
    }
    finish_rows(task.parts);
  }

  void run_peek() {
    take_queries();
    for (int64_t k = task.first_page; k < task.end_page; ++k) {
      weigh_keys(k, page, head(k + 1 < task.end_page ? k + 1 : k));
      for (int64_t row = 0; row < rows; ++row) {
        float* to = task.parts + (k * rows + row) * 2;
        to[0] = page[row * state + padded];
        to[1] = page[row * state + padded + 1];
      }
    }
  }
};

#ifndef DROVER_ATTENTION_TILE_ONLY  // as attention_amx.cpp wants it

// The smallest bf16 that is no less than x; with `further` the one after it.
inline uint16_t round_up(float x, bool further) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  uint16_t top = static_cast<uint16_t>(u >> 16);
  if (x > 0 && (u & 0xffff) != 0) ++top;  // a negative number was rounded up by being cut
  if (further && top != 0x7f80) top = (top & 0x7fff) == 0 ? 1 : x > 0 ? top + 1 : top - 1;
  return top;
}

template <typename T>
void bound_keys_of(const KeyBoundTask& task) {
  const T* keys = reinterpret_cast<const T*>(task.head);
  const bool is_int8 = task.type == KvType::kInt8;
  const float* scales = reinterpret_cast<const float*>(task.head + task.layout.key_scales);
  for (int64_t i = 0; i < task.head_dim; ++i) {
    V most = all(-__builtin_inff()), least = most;  // of x and of -x
    I odd = {};
    for (int64_t t = 0; t < kPageTokens; t += W) {
      V x = load(keys + t / kBlockTokens * kBlockTokens * task.head_dim + i * kBlockTokens +
                 t % kBlockTokens);
      if (is_int8) x *= load(scales + t);
      most = max(x, most);
      least = max(-x, least);
      odd |= x - x != V{};
    }
    float high = most[0], low = least[0];
    int32_t any = 0;
    for (int l = 0; l < W; ++l) {
      high = max(most[l], high);
      low = max(least[l], low);
      any |= odd[l];
    }
    uint16_t* bounds = task.bounds + i * 2 * kSpanPages + task.slot;
    bounds[0] = any != 0 ? 0xff80 : round_up(low, is_int8) ^ 0x8000;
    bounds[kSpanPages] = any != 0 ? 0x7f80 : round_up(high, is_int8);
  }
}

}  // namespace

void bound_keys(const KeyBoundTask& task) {
  switch (task.type) {
    case KvType::kF32:
      return bound_keys_of<float>(task);
    case KvType::kBF16:
      return bound_keys_of<Bf16>(task);
    case KvType::kInt8:
      return bound_keys_of<int8_t>(task);
  }
}

void bound_pages(const PageBoundTask& task) {
  constexpr int N = 4;
  static_assert(kSpanPages % (N * W) == 0);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(task.head_dim));
  const int64_t d = task.head_dim;
  float queries[kMaxHeadDim];
  for (int64_t span = task.first_span; span < task.end_span; ++span) {
    const Bf16* bounds = reinterpret_cast<const Bf16*>(task.bounds[span] + task.head_offset);
    const Bf16* end = bounds + task.head_dim * 2 * kSpanPages;
    const void* next = span + 1 < task.end_span ? task.bounds[span + 1] + task.head_offset
                                                : static_cast<const void*>(bounds);
    // The processor does not foresee which sides will be read.
    const Ahead ahead(end, next);
    for (int64_t row = 0; row < task.rows; ++row) {
      const float* q = task.q + row * d;
      const int64_t end = whole_blocks(d);
      for (int64_t i = 0; i < end; ++i) queries[i] = i < d ? q[i] * scale : 0.0f;
      if (task.type == KvType::kInt8) read_back(queries, end);
      for (int64_t page = 0; page < kSpanPages; page += N * W) {
        V sum[N] = {};
        for (int64_t i = 0; i < task.head_dim; ++i) {
          if (row == 0 && page == 0) ahead(bounds + i * 2 * kSpanPages, 2 * kSpanPages);
          const float query = queries[i];
          const Bf16* side = bounds + (i * 2 + (query < 0 ? 0 : 1)) * kSpanPages + page;
          for (int v = 0; v < N; ++v) sum[v] = fma(all(query), load(side + v * W), sum[v]);
        }
        float* to = task.out + row * task.stride + span * kSpanPages + page;
        for (int v = 0; v < N; ++v) store(to + v * W, sum[v]);
      }
    }
  }
}

namespace {

// Calls f with the tile of a task.
template <typename F>
inline void with_tile(const AttentionTask& task, F f) {
  switch (task.type) {
    case KvType::kF32:
      return f(Tile<float>(task));
    case KvType::kBF16:
      return f(Tile<Bf16>(task));
    case KvType::kInt8:
      return f(Tile<int8_t>(task));
  }
}

}  // namespace

void attend(const AttentionTask& task) {
  with_tile(task, [](auto tile) { tile.run(); });
}

void peek(const AttentionTask& task) {
  with_tile(task, [](auto tile) { tile.run_peek(); });
}

void merge_parts(const AttentionTask& task) { Tile<float>(task).run_merge(); }

#else
}  // namespace
#endif

}  // namespace drover::DROVER_ATTENTION_ISA
