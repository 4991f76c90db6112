// The body of storing keys and values, written once over a vector of W floats and compiled once per
// instruction set, like attention_impl.h. Element by element, or a largest magnitude, which has no
// order: W cannot show.

#include "kernels/attention/attention_task.h"
#include "kernels/attention/attention_vector.h"

namespace drover::DROVER_ATTENTION_ISA {
namespace {

template <typename T>
[[gnu::always_inline]] inline void store_one(T* to, float x) {
  T lanes[W];
  store(lanes, all(x));
  *to = lanes[0];
}

// Turns the rows of a W x W square into its columns.
[[gnu::always_inline]] inline void transpose(V (&m)[W]) {
  // Stage by stage, lanes whose numbers differ in one bit change places between rows whose numbers
  // differ in it.
  I even[W == 16 ? 4 : W == 8 ? 3 : 2], odd[W == 16 ? 4 : W == 8 ? 3 : 2];
  int stage = 0;
  for (int bit = 1; bit < W; bit *= 2, ++stage) {
    for (int l = 0; l < W; ++l) {
      even[stage][l] = (l & bit) ? W + (l ^ bit) : l;
      odd[stage][l] = (l & bit) ? W + l : l ^ bit;
    }
  }
  stage = 0;
  for (int bit = 1; bit < W; bit *= 2, ++stage) {
    for (int r = 0; r < W; ++r) {
      if (r & bit) continue;
      const V a = m[r], b = m[r + bit];
      m[r] = __builtin_shuffle(a, b, even[stage]);
      m[r + bit] = __builtin_shuffle(a, b, odd[stage]);
    }
  }
}

// keys[i * kBlockTokens + t] = from[t * stride + i]
template <typename T>
void store_keys(const float* from, int64_t stride, int64_t tokens, int64_t d, T* keys) {
  int64_t t = 0;
  for (; t + W <= tokens; t += W) {
    int64_t i = 0;
    for (; i + W <= d; i += W) {
      V square[W];
      for (int r = 0; r < W; ++r) square[r] = load(from + (t + r) * stride + i);
      transpose(square);
      for (int r = 0; r < W; ++r) store(keys + (i + r) * kBlockTokens + t, square[r]);
    }
    for (; i < d; ++i) {
      for (int r = 0; r < W; ++r) {
        store_one(keys + i * kBlockTokens + t + r, from[(t + r) * stride + i]);
      }
    }
  }
  for (; t < tokens; ++t) {
    for (int64_t i = 0; i < d; ++i) store_one(keys + i * kBlockTokens + t, from[t * stride + i]);
  }
}

// Component i of token t to its panel, at row t.
template <typename T>
void store_values(const float* from, int64_t stride, int64_t tokens, int64_t d, int64_t padded,
                  int64_t slot, T* values) {
  for (int64_t panel = 0; panel < d; panel += kPanelWidth) {
    const int64_t width = padded - panel < kPanelWidth ? padded - panel : kPanelWidth;
    const int64_t n = d - panel < width ? d - panel : width;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* x = from + t * stride + panel;
      T* to = values + panel * kPageTokens + (slot + t) * width;
      int64_t i = 0;
      for (; i + W <= n; i += W) store(to + i, load(x + i));
      for (; i < n; ++i) store_one(to + i, x[i]);
    }
  }
}

// The int8 form of a row (attention.h), as whole floats; returns the scale.
inline float quantize(const float* x, int64_t d, float* q) {
  // As integers magnitudes compare like floats, and NaN and infinity come out on top.
  constexpr int32_t kInfinity = 0x7f800000;
  I largest = {};
  int64_t i = 0;
  for (; i + W <= d; i += W) {
    const I magnitude = __builtin_bit_cast(I, load(x + i)) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  int32_t bits = 0;
  for (; i < d; ++i) {
    const int32_t magnitude = __builtin_bit_cast(int32_t, x[i]) & 0x7fffffff;
    bits = magnitude > bits ? magnitude : bits;
  }
  for (int l = 0; l < W; ++l) bits = largest[l] > bits ? largest[l] : bits;
  const float most = __builtin_bit_cast(float, bits);
  if (bits >= kInfinity || most < 0x1p-120f) {
    for (i = 0; i < d; ++i) q[i] = 0.0f;
    return bits >= kInfinity ? __builtin_nanf("") : 0.0f;
  }
  // 1.5 * 2^23: adding it leaves the nearest integer, ties to even.
  constexpr float kShift = 12582912.0f;
  const float inverse = 127.0f / most;
  for (i = 0; i + W <= d; i += W) {
    store(q + i, load(x + i) * all(inverse) + all(kShift) - all(kShift));
  }
  for (; i < d; ++i) q[i] = x[i] * inverse + kShift - kShift;
  return most / 127.0f;
}

template <typename T>
void store_as(const KvStoreTask& task) {
  const int64_t d = task.head_dim, padded = task.layout.padded_dim;
  T* keys = reinterpret_cast<T*>(task.head) + task.slot / kBlockTokens * kBlockTokens * d +
            task.slot % kBlockTokens;
  T* values = reinterpret_cast<T*>(task.head + task.layout.values);
  if (task.type != KvType::kInt8) {
    store_keys(task.keys, task.key_stride, task.tokens, d, keys);
    store_values(task.values, task.value_stride, task.tokens, d, padded, task.slot, values);
    return;
  }
  float* scales = reinterpret_cast<float*>(task.head + task.layout.key_scales) + task.slot;
  for (int64_t t = 0; t < task.tokens; ++t) {
    scales[t] = quantize(task.keys + t * task.key_stride, d, task.scratch + t * padded);
  }
  store_keys(task.scratch, padded, task.tokens, d, keys);
  scales = reinterpret_cast<float*>(task.head + task.layout.value_scales) + task.slot;
  for (int64_t t = 0; t < task.tokens; ++t) {
    scales[t] = quantize(task.values + t * task.value_stride, d, task.scratch + t * padded);
  }
  store_values(task.scratch, padded, task.tokens, d, padded, task.slot, values);
}

}  // namespace

void store_block(const KvStoreTask& task) {
  switch (task.type) {
    case KvType::kF32:
      return store_as<float>(task);
    case KvType::kBF16:
      return store_as<Bf16>(task);
    case KvType::kInt8:
      return store_as<int8_t>(task);
  }
}

}  // namespace drover::DROVER_ATTENTION_ISA
