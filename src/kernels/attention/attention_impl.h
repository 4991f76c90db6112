// The body of attention for one token and one kv head, written once over a vector of W floats and
// compiled once per instruction set. The including file sets DROVER_ATTENTION_ISA (a namespace of
// its own, so that no code crosses over between sets) and DROVER_VECTOR_FLOATS = W.
//
// W never shows in the bits: a score is one sum over components in order, an output component one
// sum over positions in order, a maximum has no order, and the sum of weights always runs in 16
// partial sums. Products and sums are not fused.
//
// This header pulls in no library templates: an inline function compiled here with AVX-512 must
// not be picked by the linker for the rest of the program.

#include "kernels/attention/attention_task.h"
#include "kernels/math/exp.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

constexpr int W = DROVER_VECTOR_FLOATS;
typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t Half __attribute__((vector_size(2 * W)));

[[gnu::always_inline]] inline V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
[[gnu::always_inline]] inline V load(const bf16* p) {
  Half h;
  __builtin_memcpy(&h, p, sizeof(h));
  return __builtin_bit_cast(V, __builtin_convertvector(h, U) << 16);
}
[[gnu::always_inline]] inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }

// scores[r, j] = q[r] . k[j] * scale for R query rows and the first n positions of a page; computes
// up to whole vectors, so the last scores may be meaningless.
template <int R, typename T>
void score_page(const float* const* q, const T* keys, int64_t d, int64_t n, float scale,
                float (*scores)[kPageTokens]) {
  constexpr int kVectors = 2;  // independent sums per row, to cover the latency of an addition
  for (int64_t j = 0; j < n; j += kVectors * W) {
    V sum[R][kVectors] = {};
    for (int64_t i = 0; i < d; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        const V key = load(keys + i * kPageTokens + j + v * W);
        for (int r = 0; r < R; ++r) sum[r][v] += q[r][i] * key;
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < kVectors; ++v) store(scores[r] + j + v * W, sum[r][v] * scale);
    }
  }
}

// Turns n scores into e^(score - max); returns the maximum and the sum.
[[gnu::always_inline]] inline void softmax_page(float* scores, int64_t n, float& max, float& sum) {
  max = scores[0];
  for (int64_t j = 1; j < n; ++j) max = scores[j] > max ? scores[j] : max;
  const int64_t end = (n + 15) / 16 * 16;
  for (int64_t j = n; j < end; ++j) scores[j] = max;
  const V maxima = max - V{};
  for (int64_t j = 0; j < end; j += W) store(scores + j, exp_of<V, U>(load(scores + j) - maxima));
  for (int64_t j = n; j < end; ++j) scores[j] = 0.0f;
  float sums[16] = {};
  for (int64_t j = 0; j < end; j += 16) {
    for (int l = 0; l < 16; ++l) sums[l] += scores[j + l];
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  sum = sums[0];
}

// out[r] = sum over j of weights[r, j] * v[j], for components [0, padded).
template <int R, typename T>
void weigh_page(const float (*weights)[kPageTokens], const T* values, int64_t padded, int64_t n,
                float (*out)[kMaxHeadDim]) {
  // As many components at once as the registers hold sums for.
  constexpr int kVectors = W == 16 ? 4 : 16 / W;
  int64_t i = 0;
  for (; i + kVectors * W <= padded; i += kVectors * W) {
    V sum[R][kVectors] = {};
    for (int64_t j = 0; j < n; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        const V value = load(values + j * padded + i + v * W);
        for (int r = 0; r < R; ++r) sum[r][v] += weights[r][j] * value;
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < kVectors; ++v) store(out[r] + i + v * W, sum[r][v]);
    }
  }
  for (; i < padded; i += W) {
    V sum[R] = {};
    for (int64_t j = 0; j < n; ++j) {
      const V value = load(values + j * padded + i);
      for (int r = 0; r < R; ++r) sum[r] += weights[r][j] * value;
    }
    for (int r = 0; r < R; ++r) store(out[r] + i, sum[r]);
  }
}

// R query heads of one token that share a kv head, over all pages.
template <int R, typename T>
void attend_rows(const AttentionTask& task, int64_t head) {
  const int64_t d = task.head_dim, padded = (d + 15) / 16 * 16;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  alignas(64) float scores[R][kPageTokens];
  alignas(64) float part[R][kMaxHeadDim];
  alignas(64) float total[R][kMaxHeadDim];
  float maxima[R] = {}, sums[R] = {};
  const float* q[R];
  for (int r = 0; r < R; ++r) q[r] = task.q + (head + r) * d;

  for (int64_t page = 0; page * kPageTokens < task.positions; ++page) {
    const int64_t left = task.positions - page * kPageTokens;
    const int64_t n = left < kPageTokens ? left : kPageTokens;
    const T* keys = reinterpret_cast<const T*>(task.pages[page]) + task.kv_head * d * kPageTokens;
    const T* values = reinterpret_cast<const T*>(task.pages[page] + task.keys_bytes) +
                      task.kv_head * kPageTokens * padded;
    score_page<R>(q, keys, d, n, scale, scores);
    float max[R], sum[R];
    for (int r = 0; r < R; ++r) softmax_page(scores[r], n, max[r], sum[r]);
    weigh_page<R>(scores, values, padded, n, page == 0 ? total : part);
    for (int r = 0; r < R; ++r) {
      if (page == 0) {
        maxima[r] = max[r];
        sums[r] = sum[r];
        continue;
      }
      const float merged = max[r] > maxima[r] ? max[r] : maxima[r];
      const float keep = exp_of(maxima[r] - merged), add = exp_of(max[r] - merged);
      for (int64_t i = 0; i < padded; ++i) total[r][i] = total[r][i] * keep + part[r][i] * add;
      sums[r] = sums[r] * keep + sum[r] * add;
      maxima[r] = merged;
    }
  }
  for (int r = 0; r < R; ++r) {
    float* out = task.out + (head + r) * d;
    for (int64_t i = 0; i < d; ++i) out[i] = total[r][i] / sums[r];
  }
}

template <typename T>
void attend(const AttentionTask& task) {
  // Four rows share each load of a key; more would not fit the registers.
  int64_t head = 0;
  for (; head + 4 <= task.group; head += 4) attend_rows<4, T>(task, head);
  switch (task.group - head) {
    case 3:
      return attend_rows<3, T>(task, head);
    case 2:
      return attend_rows<2, T>(task, head);
    case 1:
      return attend_rows<1, T>(task, head);
  }
}

}  // namespace

void attend(const AttentionTask& task, bool is_bf16) {
  if (is_bf16) {
    attend<bf16>(task);
  } else {
    attend<float>(task);
  }
}

}  // namespace drover::DROVER_ATTENTION_ISA
