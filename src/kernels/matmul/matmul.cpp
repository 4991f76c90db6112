#include "kernels/matmul/matmul.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/matmul/matmul_kernels.h"

namespace drover {
namespace {

using internal::kTileRows;
using internal::kUnitCols;
using internal::kUnitPanelCols;
using internal::kUnitTokenPair;
using internal::kUnitTokens;
using internal::MatmulTile;
using internal::PackedTokens;

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
  int64_t tokens;       // per task, at most
  int64_t token_parts;  // that pieces are made of, as equal as whole parts make them
  int64_t part_tokens;
  int64_t token_pieces;
  int64_t rows;        // per task
  int64_t cols = 0;    // of K at a time, for the matrix unit
  int64_t row_pieces;  // tasks per piece of tokens
  int64_t tasks;

  int64_t first_token(int64_t piece) const {
    return piece * token_parts / token_pieces * part_tokens;
  }
};

constexpr int64_t kFloatBytes = sizeof(float);

// So many bytes, up to the end of a cache line.
constexpr int64_t on_line(int64_t bytes) {
  constexpr int64_t kLine = kCacheLine;
  return (bytes + kLine - 1) / kLine * kLine;
}

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

// Rows of a task of the matrix unit: sums that rest are then some 1.5 MB at the most, and
// activations that do not stay in the cache over all of K are fetched once for so many rows.
constexpr int64_t kMostRows = 1536;

// For the matrix unit. The activations of a task fill their part of the cache, so more columns at a
// time mean fewer tokens: at least 256 products of a term with every weight (128 tokens of two
// terms) leave time to fetch the weights, and fewer columns would let the sums rest too often. Sums
// that rest, and the row of weights that nothing was prepared for, ask for tasks of many rows; few
// tokens want few rows, and many threads want something to do.
Cut cut_packed(const MatmulJob& job, int threads) {
  const int64_t terms = job.rounded ? 1 : 2;
  const int64_t most_cols = activation_bytes() / (2 * 256);
  const int64_t cuts = std::max<int64_t>(1, pieces(job.w.cols, most_cols));
  Cut out;
  out.cols =
      std::max<int64_t>(1, pieces(pieces(job.w.cols, cuts), kUnitPanelCols)) * kUnitPanelCols;
  const int64_t most_tokens = activation_bytes() /
                              (2 * terms * std::clamp<int64_t>(job.w.cols, 1, out.cols)) /
                              kUnitTokenPair * kUnitTokenPair;
  out.part_tokens = kUnitTokenPair;
  out.token_parts = pieces(job.x.rows, kUnitTokenPair);
  // A pair of tiles more than the cache's part is better than another piece.
  out.token_pieces =
      std::max<int64_t>(1, pieces(out.token_parts - 1, most_tokens / kUnitTokenPair));
  out.tokens = std::max<int64_t>(1, pieces(out.token_parts, out.token_pieces)) * kUnitTokenPair;
  const int64_t share = job.w.rows * out.token_pieces / (2 * threads);
  const int64_t most_rows = std::min<int64_t>({kMostRows, 6 * out.tokens, share});
  out.rows = std::max<int64_t>(1, most_rows / kTileRows) * kTileRows;
  out.row_pieces = pieces(job.w.rows, out.rows);
  out.tasks = job.x.rows > 0 ? out.token_pieces * out.row_pieces : 0;
  return out;
}

Cut cut(const MatmulJob& job) {
  const int64_t token_bytes = is_quantized(job.w.type)
                                  ? job.w.cols / 32 * static_cast<int64_t>(sizeof(Int8Block))
                                  : job.w.cols * static_cast<int64_t>(sizeof(float));
  Cut out;
  // Few tokens per piece would unpack the weights too often.
  out.tokens = std::max<int64_t>(48, activation_bytes() / std::max<int64_t>(1, token_bytes));
  out.tokens = std::min(std::max<int64_t>(1, job.x.rows), out.tokens);
  out.part_tokens = out.tokens;
  out.token_parts = out.token_pieces = pieces(job.x.rows, out.tokens);
  // A row panel is enough work for many tokens; few tokens need more rows.
  const int64_t row_work = std::max<int64_t>(1, job.w.row_stride() * out.tokens);
  out.rows = std::max(kTileRows, kWeightBytes / row_work / kTileRows * kTileRows);
  out.row_pieces = pieces(job.w.rows, out.rows);
  out.tasks = out.token_pieces * out.row_pieces;
  return out;
}

// Whether the matrix unit multiplies this job, from packed tokens.
bool is_packed(Isa isa, const MatmulJob& job) {
  return matrix_unit_products(isa, job.w.type, job.rounded) > 0;
}

// An empty sum with its end, which no kernel makes.
void end_empty_sums(const MatmulJob& job) {
  DROVER_CHECK(job.out16 == nullptr);
  const std::vector<float> zeros(static_cast<size_t>(job.out.cols));
  for (int64_t t = 0; t < job.out.rows; ++t) {
    internal::matmul_end_plain(zeros.data(), job.end.bias, job.end, job.out.row(t), job.out.cols);
  }
}

void check(Isa isa, const MatmulJob& job) {
  const DTypeInfo& type = dtype_info(job.w.type);
  if (!type.is_weight) {
    throw_error(ErrorKind::kUnsupported, "matmul: expected weights of a weight type, got {}",
                type.name);
  }
  DROVER_CHECK(job.x.rows >= 0 && job.w.rows >= 0 && job.w.cols >= 0);
  DROVER_CHECK(job.x.cols == job.w.cols && job.w.cols % type.block_values == 0);
  if (job.turned) {
    DROVER_CHECK(job.out.rows == job.w.rows && job.out.cols == job.x.rows);
    DROVER_CHECK(job.x16 && !job.out16 && !job.end.gelu && job.w.cols > 0);
  } else if (job.out16) {
    DROVER_CHECK(job.out16->rows() == job.x.rows && job.out16->cols() == job.w.rows);
    DROVER_CHECK(!job.end.add);
  } else {
    DROVER_CHECK(job.out.rows == job.x.rows && job.out.cols == job.w.rows);
  }
  DROVER_CHECK((!job.x16 && !job.out16) || (job.rounded && takes_rounded(isa, job.w.type)));
  DROVER_CHECK(!job.x16 || (job.x16->rows() == job.x.rows && job.x16->cols() == job.x.cols));
  DROVER_CHECK((job.x8 != nullptr) == (is_quantized(job.w.type) && !is_packed(isa, job)));
  if (job.x8) {
    DROVER_CHECK(job.x8->cols() == job.x.cols);
    DROVER_CHECK(job.x8_row >= 0 && job.x8_row + job.x.rows <= job.x8->rows());
  }
}

// The last entry whose first task is not beyond this one; entries without tasks come before it.
size_t owner(std::span<const int64_t> first_task, int64_t task) {
  const auto after = std::upper_bound(first_task.begin(), first_task.end(), task);
  return static_cast<size_t>(after - first_task.begin() - 1);
}

// The activations of a call in the form that the matrix unit takes, in the shared scratch memory.
// Jobs in a row that read the same x share it.
class Packer {
 public:
  Packer(Context& context, std::span<const MatmulJob> jobs) : isa_(context.isa) {
    for (const MatmulJob& job : jobs) check(isa_, job);
    if (isa_ == Isa::kAmx) pack(context, jobs);
  }

  bool packs(const MatmulJob& job) const { return is_packed(isa_, job); }

  // Of job `index`, from token `first` on, a multiple of 32.
  PackedTokens tokens(const MatmulJob& job, size_t index, int64_t first) const {
    if (job.x16) return internal::packed_tokens(*job.x16, first);
    const Pack& pack = packs_[pack_of_[index]];
    PackedTokens out = pack.tokens;
    out.data += first / kUnitTokenPair * pack.unit_bytes;
    return out;
  }

 private:
  struct Pack {
    ConstMatrixView x;
    PackedTokens tokens;
    int64_t unit_bytes;  // of a panel of 32 tokens, or of as many as there are
    int64_t groups, panels;
    int64_t group_tasks;  // per 16 tokens; few tokens are packed several panels at a time
    int64_t panels_each;

    bool is(const ConstMatrixView& other, int terms, int64_t width) const {
      return x.data == other.data && x.rows == other.rows && x.cols == other.cols &&
             x.stride == other.stride && tokens.terms == terms && tokens.pair_bytes == 4 * width;
    }
  };

  void pack(Context& context, std::span<const MatmulJob> jobs);

  Isa isa_;
  std::vector<Pack> packs_;
  std::vector<size_t> pack_of_;  // of each job
};

void Packer::pack(Context& context, std::span<const MatmulJob> jobs) {
  std::vector<int64_t> first_task;  // of each pack
  int64_t tasks = 0, bytes = 0;
  for (const MatmulJob& job : jobs) {
    if (packs(job) && !job.x16) {
      const ConstMatrixView& x = job.x;
      const int terms = job.rounded ? 1 : 2;
      // Few tokens for weights that are multiplied where they lie need not be filled up to 32.
      const bool narrow = x.rows <= kUnitTokens && !job.out16 &&
                          internal::lie_in_tiles(job.w.type, job.w.rows, job.w.cols);
      const int64_t width = narrow ? x.rows : kUnitTokens;
      if (packs_.empty() || !packs_.back().is(x, terms, width)) {
        Pack pack{};
        pack.x = x;
        const int64_t units = pieces(x.rows, kUnitTokenPair);
        const int64_t tiles = narrow ? 1 : 2;  // side by side
        pack.groups = units * tiles;
        pack.panels = pieces(x.cols, kUnitPanelCols);
        pack.tokens.terms = terms;
        pack.tokens.pair_bytes = 4 * width;
        pack.tokens.term_bytes = kUnitCols / 2 * pack.tokens.pair_bytes * tiles;
        pack.unit_bytes = kUnitPanelCols / kUnitCols * terms * pack.tokens.term_bytes;
        pack.tokens.panel_bytes = units * pack.unit_bytes;
        pack.panels_each = kUnitTokens / std::max<int64_t>(1, width);
        pack.group_tasks = pieces(pack.panels, pack.panels_each);
        first_task.push_back(tasks);
        tasks += pack.groups * pack.group_tasks;
        bytes += pack.panels * pack.tokens.panel_bytes;
        packs_.push_back(pack);
      }
    }
    pack_of_.push_back(packs_.size() - 1);
  }
  auto* memory = context.shared_scratch<std::byte>(static_cast<size_t>(bytes));
  for (Pack& pack : packs_) {
    pack.tokens.data = memory;
    memory += pack.panels * pack.tokens.panel_bytes;
  }
  context.threads.run(tasks, [&](int64_t task, int) {
    const size_t index = owner(first_task, task);
    const Pack& pack = packs_[index];
    task -= first_task[index];
    const int64_t group = task / pack.group_tasks, token = group * kUnitTokens;
    const int64_t begin = task % pack.group_tasks * pack.panels_each;
    const int64_t end = std::min(pack.panels, begin + pack.panels_each);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t col = panel * kUnitPanelCols;
      internal::pack_amx(
          pack.x.row(token) + col, pack.x.stride, std::min(kUnitTokens, pack.x.rows - token),
          std::min(kUnitPanelCols, pack.x.cols - col), pack.tokens,
          const_cast<std::byte*>(pack.tokens.data) + panel * pack.tokens.panel_bytes +
              group / 2 * pack.unit_bytes + group % 2 * (pack.tokens.term_bytes / 2));
    }
  });
}

}  // namespace

bool takes_rounded(Isa isa, DType type) {
  return isa == Isa::kAmx && (type == DType::kBF16 || type == DType::kF16 || type == DType::kF32 ||
                              type == DType::kQ8_0);
}

int matrix_unit_products(Isa isa, DType type, bool rounded) {
  if (rounded && takes_rounded(isa, type)) return 1;
  return isa == Isa::kAmx && type == DType::kBF16 ? 2 : 0;
}

internal::MatmulTileKernel* internal::matmul_tile_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return matmul_tile_amx;
  if (isa == Isa::kAvx512) return matmul_tile_avx512;
  if (isa == Isa::kAvxVnni) return matmul_tile_avxvnni;
  if (isa == Isa::kAvx2) return matmul_tile_avx2;
#endif
  (void)isa;
  return matmul_tile_plain;
}

internal::MatmulEndRow* internal::matmul_end_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return matmul_end_avx512;
  if (isa >= Isa::kAvx2) return matmul_end_avx2;
#endif
  (void)isa;
  return matmul_end_plain;
}

void matmul(Context& context, std::span<const MatmulJob> jobs) {
  const Packer packer(context, jobs);
  std::vector<Cut> cuts;
  std::vector<int64_t> first_task;  // of each job
  cuts.reserve(jobs.size());
  first_task.reserve(jobs.size());
  int64_t tasks = 0, scratch_bytes = 0;
  for (size_t j = 0; j < jobs.size(); ++j) {
    const MatmulJob& job = jobs[j];
    const bool packed = packer.packs(job);
    cuts.push_back(packed ? cut_packed(job, context.threads.size()) : cut(job));
    first_task.push_back(tasks);
    if (job.w.cols == 0) {  // an empty sum
      end_empty_sums(job);
      continue;
    }
    const Cut& cut = cuts.back();
    tasks += cut.tasks;
    int64_t bytes = 0;
    if (packed) {
      bytes = internal::packed_scratch_bytes(cut.rows, cut.tokens, job.w.cols, cut.cols);
    } else {
      bytes = internal::matmul_scratch_bytes(job.w.type, job.w.cols, cut.tokens);
      if (job.end) bytes = on_line(bytes) + cut.rows * cut.tokens * kFloatBytes;
    }
    scratch_bytes = std::max(scratch_bytes, bytes);
  }
  const auto kernel = internal::matmul_tile_kernel(context.isa);
  const auto end_row = internal::matmul_end_kernel(context.isa);
  context.threads.run(tasks, [&](int64_t task, int worker) {
    const size_t index = owner(first_task, task);
    const MatmulJob& job = jobs[index];
    const Cut& cut = cuts[index];
    task -= first_task[index];
    const int64_t piece = task / cut.row_pieces, token = cut.first_token(piece);
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
    tile.tokens = std::min(cut.first_token(piece + 1), job.x.rows) - token;
    if (job.out16 == nullptr) {
      tile.out = job.turned ? job.out.data + token : job.out.row(token);
      tile.out_stride = job.out.stride;
      tile.turned = job.turned;
    }
    tile.scratch = context.scratch<std::byte>(worker, static_cast<size_t>(scratch_bytes));
    if (packer.packs(job)) {
      tile.packed = packer.tokens(job, index, token);
      tile.cut_cols = cut.cols;
      tile.end = job.end;
      if (job.turned && job.end.bias != nullptr) tile.end.bias = job.end.bias + token;
      if (job.out16) {
        tile.out16 = job.out16->unit(token);
        tile.out16_panel_bytes = job.out16->panel_bytes();
      }
      kernel(tile);
      return;
    }
    if (job.x8) {
      tile.x8 = job.x8->row(job.x8_row + token);
      tile.x8_stride = job.x8->blocks_per_row();
    } else {
      tile.x = job.x.row(token);
      tile.x_stride = job.x.stride;
    }
    if (!job.end) {
      kernel(tile);
      return;
    }
    // Sums wait in the scratch memory, which is in a cache, for their end.
    const int64_t rows = tile.row_end - row;
    auto* sums = reinterpret_cast<float*>(
        tile.scratch + on_line(internal::matmul_scratch_bytes(job.w.type, job.w.cols, cut.tokens)));
    tile.out = sums - row;
    tile.out_stride = rows;
    kernel(tile);
    for (int64_t t = 0; t < tile.tokens; ++t) {
      end_row(sums + t * rows, job.end.bias != nullptr ? job.end.bias + row : nullptr, job.end,
              job.out.row(token + t) + row, rows);
    }
  });
}

}  // namespace drover
