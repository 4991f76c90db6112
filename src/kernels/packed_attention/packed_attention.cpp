#include "kernels/packed_attention/packed_attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/attention/attention_task.h"  // kMaxHeadDim
#include "kernels/packed_attention/packed_attention_task.h"

namespace drover {
namespace {

// A task of the forward pass has this many blocks of rows, those of all heads that share keys: what
// they keep, 32 KB each with 64 components, stays in an L2 cache while keys come by, and enough of
// them meet each block of keys to pay for bringing it into form.
constexpr int64_t kForwardBlocks = 16;
// A task of the backward pass has this many keys: enough for a chunk, and few enough that they and
// their gradients stay in an L2 cache while rows come by, 0.5 MB with 64 components.
constexpr int64_t kStripeKeys = 512;
static_assert(kStripeKeys % kBlockKeys == 0);
// Keys of longer spans are cut into this many stripes. Each but the first leaves a part of dq.
constexpr int64_t kMostStripes = 8;

const PackedFunctions& functions_for(Isa isa, bool rounded) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx && rounded) return kPackedAmx;
  if (isa >= Isa::kAvx512) return kPackedAvx512;
  if (isa != Isa::kPlain) return kPackedAvx2;
#endif
  (void)isa;
  (void)rounded;
  return kPackedPlain;
}

int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

PackedRows rows_from(ConstMatrixView x, int64_t row, int64_t col) {
  return {x.row(row) + col, x.stride};
}
PackedOutput rows_from(MatrixView x, int64_t row, int64_t col) {
  return {x.row(row) + col, x.stride};
}

void check(const PackedAttention& how, ConstMatrixView q, ConstMatrixView k, ConstMatrixView v) {
  DROVER_CHECK(how.kv_heads > 0 && how.heads % how.kv_heads == 0);
  DROVER_CHECK(how.head_dim > 0 && how.head_dim % 2 == 0 && how.head_dim <= kMaxHeadDim);
  DROVER_CHECK(q.cols == how.heads * how.head_dim && k.cols == how.kv_heads * how.head_dim);
  DROVER_CHECK(v.cols == k.cols && k.rows == q.rows && v.rows == q.rows);
  for (const RowSpan& rows : how.spans) {
    DROVER_CHECK(rows.first >= 0 && rows.count >= 0 && rows.first + rows.count <= q.rows);
  }
}
bool same_shape(ConstMatrixView a, ConstMatrixView b) {
  return a.rows == b.rows && a.cols == b.cols;
}

// One head of keys and values in a span, and where its columns begin.
struct SpanHead {
  PackedSpan span;
  int64_t q_col;    // in q, out and dq
  int64_t kv_col;   // in k and v
  int64_t sum_col;  // in log_sums
};

SpanHead span_head(const PackedAttention& how, const RowSpan& rows, int64_t head, ConstMatrixView q,
                   ConstMatrixView k, ConstMatrixView v) {
  const int64_t group = how.heads / how.kv_heads;
  const int64_t kv_col = head * how.head_dim, q_col = group * kv_col;
  return {.span = {.count = rows.count,
                   .head_dim = how.head_dim,
                   .group = group,
                   .causal = how.causal,
                   .key_bias = how.key_bias != nullptr ? how.key_bias + rows.first : nullptr,
                   .q = rows_from(q, rows.first, q_col),
                   .k = rows_from(k, rows.first, kv_col),
                   .v = rows_from(v, rows.first, kv_col)},
          .q_col = q_col,
          .kv_col = kv_col,
          .sum_col = head * group};
}

// Zeros in the rows outside of all spans.
void clear_between(std::span<const RowSpan> spans, MatrixView x) {
  std::vector<RowSpan> sorted(spans.begin(), spans.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const RowSpan& a, const RowSpan& b) { return a.first < b.first; });
  sorted.push_back({x.rows, 0});
  int64_t row = 0;
  for (const RowSpan& span : sorted) {
    DROVER_CHECK(span.count == 0 || span.first >= row);
    for (; row < span.first; ++row) std::fill_n(x.row(row), x.cols, 0.0f);
    row = std::max(row, span.first + span.count);
  }
}

// Pairs of a row and a key that it sees; blocks count whole.
int64_t pairs_of(const PackedForward& task) {
  const int64_t rows = task.end - task.begin;
  return task.span.group * rows * (task.span.causal ? task.end : task.span.count);
}
int64_t pairs_of(const PackedBackward& task) {
  const int64_t keys = task.end - task.begin;
  return task.span.group * keys * (task.span.count - (task.span.causal ? task.begin : 0));
}

// Long tasks first, so that no thread is left with one at the end.
template <typename Task, typename Function, typename Scratch>
void run_tasks(Context& context, std::vector<Task>& tasks, Function function, Scratch scratch_of) {
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return pairs_of(a) > pairs_of(b); });
  int64_t scratch = 0;
  for (const Task& task : tasks) {
    scratch = std::max(scratch, scratch_of(task.span, task.end - task.begin));
  }
  context.threads.run(std::ssize(tasks), [&](int64_t i, int worker) {
    Task task = tasks[static_cast<size_t>(i)];
    task.scratch = context.scratch<float>(worker, static_cast<size_t>(scratch));
    function(task);
  });
}

int64_t stripe_keys(int64_t count) {
  return std::max(kStripeKeys, blocks_of(blocks_of(count, kMostStripes), kBlockKeys) * kBlockKeys);
}

// What a stripe of keys gives to dq of the rows that see it.
struct QueryPart {
  RowSpan rows;  // of the batch
  MatrixView dq;
};

// Those of all stripes but the first of each span, which goes to dq itself.
std::vector<QueryPart> query_parts(Context& context, const PackedAttention& how, int64_t cols) {
  std::vector<QueryPart> parts;
  int64_t rows = 0;
  for (const RowSpan& span : how.spans) {
    const int64_t step = stripe_keys(span.count);
    for (int64_t key = step; key < span.count; key += step) {
      const int64_t unseen = how.causal ? key : 0;
      parts.push_back({{span.first + unseen, span.count - unseen}, {}});
      rows += span.count - unseen;
    }
  }
  float* data = context.shared_scratch<float>(static_cast<size_t>(rows * cols));
  for (QueryPart& part : parts) {
    part.dq = {data, part.rows.count, cols, cols};
    data += part.rows.count * cols;
  }
  return parts;
}

// Adds the parts to dq, of each row in the order of their keys.
void add_parts(Context& context, const std::vector<QueryPart>& parts, MatrixView dq) {
  if (parts.empty()) return;
  const int64_t tasks = blocks_of(dq.rows, kBlockRows);
  context.threads.run(tasks, [&](int64_t task, int) {
    for (const QueryPart& part : parts) {
      const int64_t begin = std::max(task * kBlockRows, part.rows.first);
      const int64_t end = std::min((task + 1) * kBlockRows, part.rows.first + part.rows.count);
      for (int64_t row = begin; row < end; ++row) {
        const float* from = part.dq.row(row - part.rows.first);
        float* to = dq.row(row);
        for (int64_t i = 0; i < dq.cols; ++i) to[i] += from[i];
      }
    }
  });
}

}  // namespace

void packed_attention(Context& context, const PackedAttention& how, MatrixView out,
                      MatrixView log_sums, ConstMatrixView q, ConstMatrixView k,
                      ConstMatrixView v) {
  check(how, q, k, v);
  DROVER_CHECK(same_shape(out, q) && log_sums.rows == q.rows && log_sums.cols == how.heads);
  const int64_t step = std::max<int64_t>(1, kForwardBlocks * how.kv_heads / how.heads) * kBlockRows;
  std::vector<PackedForward> tasks;
  for (const RowSpan& rows : how.spans) {
    for (int64_t head = 0; head < how.kv_heads; ++head) {
      const SpanHead at = span_head(how, rows, head, q, k, v);
      for (int64_t row = 0; row < rows.count; row += step) {
        tasks.push_back({.span = at.span,
                         .begin = row,
                         .end = std::min(row + step, rows.count),
                         .out = rows_from(out, rows.first, at.q_col),
                         .log_sums = rows_from(log_sums, rows.first, at.sum_col),
                         .scratch = nullptr});
      }
    }
  }
  clear_between(how.spans, out);
  clear_between(how.spans, log_sums);
  const PackedFunctions& functions = functions_for(context.isa, how.rounded);
  run_tasks(context, tasks, functions.forward, functions.forward_scratch);
}

void packed_attention_backward(Context& context, const PackedAttention& how, MatrixView dq,
                               MatrixView dk, MatrixView dv, ConstMatrixView dout,
                               ConstMatrixView out, ConstMatrixView log_sums, ConstMatrixView q,
                               ConstMatrixView k, ConstMatrixView v) {
  check(how, q, k, v);
  DROVER_CHECK(same_shape(dq, q) && same_shape(dk, k) && same_shape(dv, v));
  DROVER_CHECK(same_shape(dout, q) && same_shape(out, q));
  DROVER_CHECK(log_sums.rows == q.rows && log_sums.cols == how.heads);
  const std::vector<QueryPart> parts = query_parts(context, how, dq.cols);
  auto part = parts.begin();
  std::vector<PackedBackward> tasks;
  for (const RowSpan& rows : how.spans) {
    const int64_t step = stripe_keys(rows.count);
    for (int64_t key = 0; key < rows.count; key += step) {
      for (int64_t head = 0; head < how.kv_heads; ++head) {
        const SpanHead at = span_head(how, rows, head, q, k, v);
        tasks.push_back({.span = at.span,
                         .begin = key,
                         .end = std::min(key + step, rows.count),
                         .dout = rows_from(dout, rows.first, at.q_col),
                         .out = rows_from(out, rows.first, at.q_col),
                         .log_sums = rows_from(log_sums, rows.first, at.sum_col),
                         .dq = key == 0 ? rows_from(dq, rows.first, at.q_col)
                                        : rows_from(part->dq, 0, at.q_col),
                         .dk = rows_from(dk, rows.first, at.kv_col),
                         .dv = rows_from(dv, rows.first, at.kv_col),
                         .scratch = nullptr});
      }
      if (key > 0) ++part;
    }
  }
  for (const MatrixView& gradient : {dq, dk, dv}) clear_between(how.spans, gradient);
  const PackedFunctions& functions = functions_for(context.isa, how.rounded);
  run_tasks(context, tasks, functions.backward, functions.backward_scratch);
  add_parts(context, parts, dq);
}

}  // namespace drover
