// The bodies of the row kernels, written once over a vector of W floats and compiled once per
// instruction set. The including file sets DROVER_ROW_KERNELS, their table's name, and
// DROVER_VECTOR_FLOATS = W, which divides 16. Unfused, so W never shows in the bits. No library
// templates here: an inline function compiled with AVX-512 must not be picked by the linker for the
// rest of the program.

#include "kernels/math/exp.h"
#include "kernels/row/row_kernels.h"

namespace drover::internal {
namespace {

constexpr int W = DROVER_VECTOR_FLOATS;
typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));

[[gnu::always_inline]] inline V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
[[gnu::always_inline]] inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
[[gnu::always_inline]] inline void store(float* p, float x) { *p = x; }

// The mean of term(i) for i < n; a term takes a vector of components, or one.
template <typename Term>
[[gnu::always_inline]] inline float mean_of(const float* x, int64_t n, const Term& term) {
  V partial[16 / W] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int v = 0; v < 16 / W; ++v) partial[v] = partial[v] + term(load(x + i + v * W));
  }
  float sums[16];
  for (int v = 0; v < 16 / W; ++v) store(sums + v * W, partial[v]);
  for (int l = 0; i + l < n; ++l) sums[l] += term(x[i + l]);
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0] / static_cast<float>(n);
}

// to[i] = map(x[i], i), a vector of components at a time, and one where there are fewer.
template <typename Map>
[[gnu::always_inline]] inline void map_row(int64_t n, float* to, const Map& map) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, map(i, V{}));
  for (; i < n; ++i) store(to + i, map(i, 0.0f));
}
// Components from p on, as many as `like` has.
[[gnu::always_inline]] inline V take(const float* p, V) { return load(p); }
[[gnu::always_inline]] inline float take(const float* p, float) { return *p; }

float inverse_rms(const float* x, int64_t n, float eps) {
  const float mean = mean_of(x, n, [](auto v) { return v * v; });
  return 1.0f / __builtin_sqrtf(mean + eps);
}

void scale_row(const float* x, int64_t n, float scale, const float* weight, float* to) {
  if (weight == nullptr) {
    map_row(n, to, [&](int64_t i, auto like) { return take(x + i, like) * scale; });
  } else {
    map_row(n, to, [&](int64_t i, auto like) {
      return take(x + i, like) * scale * take(weight + i, like);
    });
  }
}

void layer_norm_row(const float* x, int64_t n, const float* weight, const float* bias, float eps,
                    float* to) {
  const float mean = mean_of(x, n, [](auto v) { return v; });
  const float variance = mean_of(x, n, [mean](auto v) {
    const auto difference = v - mean;
    return difference * difference;
  });
  const float scale = 1.0f / __builtin_sqrtf(variance + eps);
  map_row(n, to, [&](int64_t i, auto like) {
    return (take(x + i, like) - mean) * scale * take(weight + i, like) + take(bias + i, like);
  });
}

void rotate_row(float* x, int64_t n, int64_t d, const float* cosine, const float* sine) {
  I partner;
  for (int l = 0; l < W; ++l) partner[l] = l ^ 1;
  for (float* head = x; head < x + n; head += d) {
    int64_t i = 0;
    for (; i + W <= d; i += W) {
      const V v = load(head + i);
      store(head + i, v * load(cosine + i) + __builtin_shuffle(v, partner) * load(sine + i));
    }
    for (; i < d; i += 2) {
      const float re = head[i], im = head[i + 1];
      head[i] = re * cosine[i] + im * sine[i];
      head[i + 1] = im * cosine[i + 1] + re * sine[i + 1];
    }
  }
}

template <typename F, typename Bits>
[[gnu::always_inline]] inline F gated(F gate, F up) {
  return gate / (1.0f + exp_of<F, Bits>(-gate)) * up;
}

void swiglu_row(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(gate + i, gated<V, U>(load(gate + i), load(up + i)));
  for (; i < n; ++i) gate[i] = gated<float, uint32_t>(gate[i], up[i]);
}

}  // namespace

const RowKernels DROVER_ROW_KERNELS = {inverse_rms, scale_row, layer_norm_row, rotate_row,
                                       swiglu_row};

}  // namespace drover::internal
