#include "kernels/attention/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "tensor/float16.h"

namespace drover {
namespace {

float from_float(float x, float*) { return x; }
bf16 from_float(float x, bf16*) { return to_bf16(x); }

template <typename T>
void store_token(const KvPages& kv, int64_t position, const float* key, const float* value) {
  const int64_t d = kv.head_dim, slot = position % kPageTokens;
  std::byte* page = kv.pages[position / kPageTokens];
  T* keys = reinterpret_cast<T*>(page) + slot;
  T* values = reinterpret_cast<T*>(page + kv.keys_bytes()) + slot * kv.padded_dim();
  for (int64_t head = 0; head < kv.kv_heads; ++head) {
    for (int64_t i = 0; i < d; ++i) {
      keys[(head * d + i) * kPageTokens] = from_float(key[head * d + i], static_cast<T*>(nullptr));
      values[head * kPageTokens * kv.padded_dim() + i] =
          from_float(value[head * d + i], static_cast<T*>(nullptr));
    }
  }
}

auto attend_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return attention_avx512::attend;
  if (isa == Isa::kAvx2) return attention_avx2::attend;
#endif
  (void)isa;
  return attention_plain::attend;
}

}  // namespace

void store_kv(Context& context, const KvPages& pages, int64_t first, ConstMatrixView keys,
              ConstMatrixView values) {
  DROVER_CHECK(pages.type == DType::kF32 || pages.type == DType::kBF16);
  context.threads.run(keys.rows, [&](int64_t t, int) {
    if (pages.type == DType::kBF16) {
      store_token<bf16>(pages, first + t, keys.row(t), values.row(t));
    } else {
      store_token<float>(pages, first + t, keys.row(t), values.row(t));
    }
  });
}

void attention(Context& context, std::span<const AttentionJob> jobs) {
  // Task numbers of all jobs in one row: (job, token, kv head), the later and so longer tokens of a
  // job first, so that no thread is left with a long one at the end.
  std::vector<int64_t> first_task(jobs.size() + 1, 0);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const KvPages& kv = jobs[i].pages;
    DROVER_CHECK(kv.head_dim <= kMaxHeadDim && jobs[i].q.cols % (kv.kv_heads * kv.head_dim) == 0);
    first_task[i + 1] = first_task[i] + jobs[i].q.rows * kv.kv_heads;
  }
  const auto attend = attend_for(context.isa);
  context.threads.run(first_task.back(), [&](int64_t number, int) {
    const size_t i =
        std::upper_bound(first_task.begin(), first_task.end(), number) - first_task.begin() - 1;
    const AttentionJob& job = jobs[i];
    const KvPages& kv = job.pages;
    const int64_t t = job.q.rows - 1 - (number - first_task[i]) / kv.kv_heads;
    const int64_t kv_head = (number - first_task[i]) % kv.kv_heads;
    const int64_t group = job.q.cols / kv.head_dim / kv.kv_heads;
    const int64_t offset = kv_head * group * kv.head_dim;
    attend({.q = job.q.row(t) + offset,
            .out = job.out.row(t) + offset,
            .pages = kv.pages,
            .keys_bytes = kv.keys_bytes(),
            .kv_head = kv_head,
            .head_dim = kv.head_dim,
            .group = group,
            .positions = job.first + t + 1},
           kv.type == DType::kBF16);
  });
}

}  // namespace drover
