// Internal to attention: the work of one token and one kv head, and the functions that do it, one
// per instruction set. Plain data, since files with instruction-set flags include it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/float16.h"

namespace drover {

inline constexpr int64_t kPageTokens = 256;
inline constexpr int64_t kMaxHeadDim = 512;

struct AttentionTask {
  const float* q;                 // [group, d]: the query heads of this kv head
  float* out;                     // [group, d]
  const std::byte* const* pages;  // see KvPages
  int64_t keys_bytes;             // where the values of a page begin
  int64_t kv_head;
  int64_t head_dim;
  int64_t group;
  int64_t positions;  // attends to [0, positions)
};

namespace attention_plain {
void attend(const AttentionTask& task, bool is_bf16);
}
namespace attention_avx2 {
void attend(const AttentionTask& task, bool is_bf16);
}
namespace attention_avx512 {
void attend(const AttentionTask& task, bool is_bf16);
}

}  // namespace drover
