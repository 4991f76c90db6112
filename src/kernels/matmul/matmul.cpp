#include "kernels/matmul/matmul.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/matmul/matmul_kernels.h"

namespace drover {
namespace {

using internal::kTileRows;
using internal::MatmulTile;

// Activations that one task goes over again for every panel of weights: half of the second-level
// cache, the rest being for the weights that come in. More tokens per task read the weights less
// often.
int64_t activation_bytes() {
  static const int64_t bytes = [] {
    const int64_t reported = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 where unknown
    return std::clamp<int64_t>(reported, 512 << 10, 4 << 20) / 2;
  }();
  return bytes;
}

// Weights that a task of few tokens reads: some microseconds of work from memory, so that handing
// out tasks costs nothing and the threads still end together.
constexpr int64_t kWeightBytes = 32 << 10;

// How a job is cut into tasks: token pieces outside, so that a thread that takes one task after the
// other keeps its activations in the cache.
struct Cut {
  int64_t tokens;      // per task
  int64_t rows;        // per task
  int64_t row_pieces;  // tasks per piece of tokens
  int64_t tasks;
};

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

Cut cut(const MatmulJob& job) {
  const int64_t token_bytes = is_quantized(job.w.type)
                                  ? job.w.cols / 32 * static_cast<int64_t>(sizeof(Int8Block))
                                  : job.w.cols * static_cast<int64_t>(sizeof(float));
  Cut out;
  // Few tokens per piece would unpack the weights too often.
  out.tokens = std::max<int64_t>(48, activation_bytes() / std::max<int64_t>(1, token_bytes));
  out.tokens = std::min(std::max<int64_t>(1, job.x.rows), out.tokens);
  // A row panel is enough work for many tokens; few tokens need more rows.
  const int64_t row_work = std::max<int64_t>(1, job.w.row_stride() * out.tokens);
  out.rows = std::max(kTileRows, kWeightBytes / row_work / kTileRows * kTileRows);
  out.row_pieces = pieces(job.w.rows, out.rows);
  out.tasks = pieces(job.x.rows, out.tokens) * out.row_pieces;
  return out;
}

void check(const MatmulJob& job) {
  const DTypeInfo& type = dtype_info(job.w.type);
  if (!type.is_weight) {
    throw_error(ErrorKind::kUnsupported, "matmul: expected weights of a weight type, got {}",
                type.name);
  }
  DROVER_CHECK(job.x.rows >= 0 && job.w.rows >= 0 && job.w.cols >= 0);
  DROVER_CHECK(job.x.cols == job.w.cols && job.w.cols % type.block_values == 0);
  DROVER_CHECK(job.out.rows == job.x.rows && job.out.cols == job.w.rows);
  DROVER_CHECK((job.x8 != nullptr) == is_quantized(job.w.type));
  if (job.x8) {
    DROVER_CHECK(job.x8->cols() == job.x.cols);
    DROVER_CHECK(job.x8_row >= 0 && job.x8_row + job.x.rows <= job.x8->rows());
  }
}

}  // namespace

internal::MatmulTileKernel* internal::matmul_tile_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return matmul_tile_avx512;
  if (isa == Isa::kAvxVnni) return matmul_tile_avxvnni;
  if (isa == Isa::kAvx2) return matmul_tile_avx2;
#endif
  (void)isa;
  return matmul_tile_plain;
}

void matmul(Context& context, std::span<const MatmulJob> jobs) {
  std::vector<Cut> cuts;
  std::vector<int64_t> first_task;  // of each job
  cuts.reserve(jobs.size());
  first_task.reserve(jobs.size());
  int64_t tasks = 0, scratch_bytes = 0;
  for (const MatmulJob& job : jobs) {
    check(job);
    cuts.push_back(cut(job));
    first_task.push_back(tasks);
    if (job.w.cols == 0) {  // an empty sum
      for (int64_t t = 0; t < job.out.rows; ++t) std::fill_n(job.out.row(t), job.out.cols, 0.0f);
      continue;
    }
    tasks += cuts.back().tasks;
    scratch_bytes = std::max(
        scratch_bytes, internal::matmul_scratch_bytes(job.w.type, job.w.cols, cuts.back().tokens));
  }
  const auto kernel = internal::matmul_tile_kernel(context.isa);
  context.threads.run(tasks, [&](int64_t task, int worker) {
    // The last job whose first task is not beyond this one; jobs without tasks come before it.
    const auto after = std::upper_bound(first_task.begin(), first_task.end(), task);
    const auto index = static_cast<size_t>(after - first_task.begin() - 1);
    const MatmulJob& job = jobs[index];
    const Cut& cut = cuts[index];
    task -= first_task[index];
    const int64_t token = task / cut.row_pieces * cut.tokens;
    const int64_t row = task % cut.row_pieces * cut.rows;
    MatmulTile tile{};
    tile.type = job.w.type;
    tile.cols = job.w.cols;
    tile.w = job.w.data;
    tile.w_stride = job.w.row_stride();
    tile.w_rows = job.w.rows;
    tile.row_begin = row;
    tile.row_end = std::min(job.w.rows, row + cut.rows);
    tile.next_row = row + cut.rows * context.threads.size();
    tile.tokens = std::min(cut.tokens, job.x.rows - token);
    if (job.x8) {
      tile.x8 = job.x8->row(job.x8_row + token);
      tile.x8_stride = job.x8->blocks_per_row();
    } else {
      tile.x = job.x.row(token);
      tile.x_stride = job.x.stride;
    }
    tile.out = job.out.row(token);
    tile.out_stride = job.out.stride;
    tile.scratch = context.scratch<std::byte>(worker, static_cast<size_t>(scratch_bytes));
    kernel(tile);
  });
}

}  // namespace drover
