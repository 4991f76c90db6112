// The formula, row after row: what all others are held against.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/packed_attention/packed_attention_task.h"

namespace drover {
namespace {

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// to += scale * x
void add(float* to, float scale, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += scale * x[i];
}

struct Span {
  const PackedSpan& span;
  const int64_t d = span.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));

  const float* query(int64_t t, int64_t head) const {
    return span.q.data + t * span.q.stride + head * d;
  }
  const float* key(int64_t p) const { return span.k.data + p * span.k.stride; }
  const float* value(int64_t p) const { return span.v.data + p * span.v.stride; }
  float score(const float* q, int64_t p) const {
    return dot(q, key(p), d) * scale + (span.key_bias != nullptr ? span.key_bias[p] : 0.0f);
  }
  // Row t sees keys [0, end).
  int64_t end_key(int64_t t) const { return span.causal ? t + 1 : span.count; }
};

void forward(const PackedForward& task) {
  const Span s{task.span};
  float* const scores = task.scratch;
  for (int64_t t = task.begin; t < task.end; ++t) {
    for (int64_t head = 0; head < task.span.group; ++head) {
      const int64_t n = s.end_key(t);
      float most = std::numeric_limits<float>::lowest();  // a bias may be -infinity
      for (int64_t p = 0; p < n; ++p) {
        scores[p] = s.score(s.query(t, head), p);
        most = std::max(most, scores[p]);
      }
      float* const out = task.out.data + t * task.out.stride + head * s.d;
      std::fill_n(out, s.d, 0.0f);
      float sum = 0;
      for (int64_t p = 0; p < n; ++p) {
        const float weight = std::exp(scores[p] - most);
        sum += weight;
        add(out, weight, s.value(p), s.d);
      }
      for (int64_t i = 0; i < s.d; ++i) out[i] /= sum;
      task.log_sums.data[t * task.log_sums.stride + head] = most + std::log(sum);
    }
  }
}

void backward(const PackedBackward& task) {
  const Span s{task.span};
  const auto dk = [&](int64_t p) { return task.dk.data + p * task.dk.stride; };
  const auto dv = [&](int64_t p) { return task.dv.data + p * task.dv.stride; };
  for (int64_t p = task.begin; p < task.end; ++p) {
    std::fill_n(dk(p), s.d, 0.0f);
    std::fill_n(dv(p), s.d, 0.0f);
  }
  const int64_t first = task.span.causal ? task.begin : 0;
  for (int64_t t = first; t < task.span.count; ++t) {
    for (int64_t head = 0; head < task.span.group; ++head) {
      const float* const q = s.query(t, head);
      const float* const dout = task.dout.data + t * task.dout.stride + head * s.d;
      const float delta = dot(dout, task.out.data + t * task.out.stride + head * s.d, s.d);
      const float log_sum = task.log_sums.data[t * task.log_sums.stride + head];
      float* const dq = task.dq.data + (t - first) * task.dq.stride + head * s.d;
      std::fill_n(dq, s.d, 0.0f);
      for (int64_t p = task.begin; p < std::min(task.end, s.end_key(t)); ++p) {
        const float weight = std::exp(s.score(q, p) - log_sum);
        const float dscore = weight * (dot(dout, s.value(p), s.d) - delta);
        add(dv(p), weight, dout, s.d);
        add(dk(p), dscore * s.scale, q, s.d);
        add(dq, dscore * s.scale, s.key(p), s.d);
      }
    }
  }
}

int64_t forward_scratch(const PackedSpan& span, int64_t) { return span.count; }
int64_t backward_scratch(const PackedSpan&, int64_t) { return 0; }

}  // namespace

const PackedFunctions kPackedPlain = {forward, backward, forward_scratch, backward_scratch};

}  // namespace drover
