#include "kernels/attention/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace drover {
namespace {

// Rows of a tile when there is work for everybody: enough that widening a block costs a few percent
// of what its rows do with it, and few enough that scores and sums stay in an L2 cache (190 KB with
// 64 components).
constexpr int64_t kTileRows = 96;
// A multiple of the six rows that a kernel takes at once; smaller tiles would widen blocks for too
// few rows. Only tiles as small as this have their past cut, so that what pages leave stays small
// beside the pages.
constexpr int64_t kSmallTileRows = 12;
// Tiles per thread below which tiles get smaller, then cut: the last ones leave some threads idle.
constexpr int64_t kTilesPerThread = 4;
// The shortest run of pages for which whole spans are worth waiting for: half a span. Below, pages
// leave their parts one by one, some 200 pages' for each thread at most.
constexpr int64_t kLongRun = kSpanPages / 2;
// In units of page_cost: some 5 microseconds of work. Handing out a task costs a tenth of one.
constexpr int64_t kSmallestTask = 100'000;

struct Functions {
  void (*attend)(const AttentionTask&);
  void (*merge_parts)(const AttentionTask&);
  void (*store_block)(const KvStoreTask&);
};

Functions functions_for(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) {
    return {attention_avx512::attend, attention_avx512::merge_parts, attention_avx512::store_block};
  }
  if (isa != Isa::kPlain) {
    return {attention_avx2::attend, attention_avx2::merge_parts, attention_avx2::store_block};
  }
#endif
  (void)isa;
  return {attention_plain::attend, attention_plain::merge_parts, attention_plain::store_block};
}

KvType kv_type(DType type) {
  DROVER_CHECK(is_cache_type(type));
  return type == DType::kF32 ? KvType::kF32 : type == DType::kBF16 ? KvType::kBF16 : KvType::kInt8;
}

int64_t pages_for(int64_t positions) { return (positions + kPageTokens - 1) / kPageTokens; }

// Roughly the multiply-adds of one page for these rows, and what reading it costs in their place.
int64_t page_cost(int64_t rows, int64_t d) { return kPageTokens * d * (rows + 6) / 8; }

int64_t group_of(const AttentionJob& job) {
  return job.q.cols / (job.pages.kv_heads * job.pages.head_dim);
}

// Consecutive pieces of work, put together into tasks that are worth handing out.
class TaskList {
 public:
  void add(int64_t cost) {
    if (cost_ == 0) firsts_.push_back(pieces_);
    ++pieces_;
    cost_ += cost;
    if (cost_ >= kSmallestTask) cost_ = 0;
  }
  template <typename Body>
  void run(Context& context, const Body& body) const {
    const int64_t tasks = static_cast<int64_t>(firsts_.size());
    context.threads.run(tasks, [&](int64_t task, int worker) {
      const int64_t end = task + 1 < tasks ? firsts_[task + 1] : pieces_;
      for (int64_t piece = firsts_[task]; piece < end; ++piece) body(piece, worker);
    });
  }

 private:
  std::vector<int64_t> firsts_;
  int64_t pieces_ = 0;
  int64_t cost_ = 0;  // of the task at the end of the list
};

// Tiles of all jobs with at most this many rows each, or one token.
std::vector<AttentionTask> cut_tiles(std::span<const AttentionJob> jobs, int64_t rows) {
  std::vector<AttentionTask> out;
  for (const AttentionJob& job : jobs) {
    const KvPages& kv = job.pages;
    const int64_t d = kv.head_dim, group = group_of(job);
    const int64_t step = std::max<int64_t>(1, rows / group);
    const HeadLayout layout = kv.head();
    AttentionTask tile{.q = nullptr,
                       .out = nullptr,
                       .q_stride = job.q.stride,
                       .out_stride = job.out.stride,
                       .type = kv_type(kv.type),
                       .pages = kv.pages,
                       .head_offset = 0,
                       .layout = layout,
                       .head_dim = d,
                       .group = group,
                       .tokens = 0,
                       .seen = 0,
                       .step = job.causal ? 1 : 0,
                       .first_page = 0,
                       .end_page = 0,
                       .scratch = nullptr,
                       .parts = nullptr,
                       .part_pages = 1};
    // Head after head, since the keys and values of one may stay in an L2 cache for all its tiles.
    // Of a head the later and so longer tiles first, so that no thread is left with a long one at
    // the end.
    for (int64_t head = 0; head < kv.kv_heads; ++head) {
      tile.head_offset = head * layout.bytes;
      for (int64_t end = job.q.rows; end > 0; end -= tile.tokens) {
        tile.tokens = std::min(step, end);
        tile.q = job.q.row(end - tile.tokens) + head * group * d;
        tile.out = job.out.row(end - tile.tokens) + head * group * d;
        const int64_t last = job.first + (job.causal ? end : job.q.rows);  // of its last token
        tile.seen = last - tile.step * (tile.tokens - 1);
        tile.end_page = pages_for(last);
        out.push_back(tile);
      }
    }
  }
  return out;
}

int64_t rows_of(const AttentionTask& task) { return task.tokens * task.group; }

int64_t cost_of(const AttentionTask& task) {
  return (task.end_page - task.first_page) * page_cost(rows_of(task), task.head_dim);
}

}  // namespace

bool is_cache_type(DType type) {
  return type == DType::kF32 || type == DType::kBF16 || type == DType::kI8;
}

void store_kv(Context& context, std::span<const KvStoreJob> jobs) {
  std::vector<KvStoreTask> blocks;
  TaskList tasks;
  size_t scratch = 0;
  for (const KvStoreJob& job : jobs) {
    const KvPages& kv = job.pages;
    const HeadLayout layout = kv.head();
    scratch = std::max(scratch, static_cast<size_t>(kBlockTokens * layout.padded_dim));
    int64_t n = 0;
    for (int64_t t = 0; t < job.keys.rows; t += n) {
      const int64_t position = job.first + t;
      n = std::min(job.keys.rows - t, kBlockTokens - position % kBlockTokens);
      for (int64_t head = 0; head < kv.kv_heads; ++head) {
        blocks.push_back({.keys = job.keys.row(t) + head * kv.head_dim,
                          .values = job.values.row(t) + head * kv.head_dim,
                          .key_stride = job.keys.stride,
                          .value_stride = job.values.stride,
                          .type = kv_type(kv.type),
                          .head = kv.pages[position / kPageTokens] + head * layout.bytes,
                          .layout = layout,
                          .head_dim = kv.head_dim,
                          .slot = position % kPageTokens,
                          .tokens = n,
                          .scratch = nullptr});
        tasks.add((n + 6) * kv.head_dim * 8);  // a lone key touches a cache line per component
      }
    }
  }
  const auto store = functions_for(context.isa).store_block;
  tasks.run(context, [&](int64_t piece, int worker) {
    KvStoreTask block = blocks[static_cast<size_t>(piece)];
    block.scratch = context.scratch<float>(worker, scratch);
    store(block);
  });
}

void attention(Context& context, std::span<const AttentionJob> jobs) {
  for (const AttentionJob& job : jobs) {
    const KvPages& kv = job.pages;
    DROVER_CHECK(kv.head_dim <= kMaxHeadDim && job.q.cols % (kv.kv_heads * kv.head_dim) == 0);
  }
  const int64_t enough = context.threads.size() > 1 ? kTilesPerThread * context.threads.size() : 0;
  int64_t tile_rows = kTileRows;
  std::vector<AttentionTask> tiles = cut_tiles(jobs, tile_rows);
  while (tile_rows > kSmallTileRows && static_cast<int64_t>(tiles.size()) < enough) {
    tile_rows /= 2;
    tiles = cut_tiles(jobs, tile_rows);
  }

  // A tile that is more than half of one thread's share is cut into runs of pages.
  int64_t total = 0;
  size_t scratch = 0;
  for (const AttentionTask& tile : tiles) {
    total += cost_of(tile);
    scratch = std::max(
        scratch, static_cast<size_t>(attention_scratch(rows_of(tile), tile.layout.padded_dim)));
  }
  const int64_t share =
      std::max(enough > 0 ? total / (2 * context.threads.size()) : total, kSmallestTask);
  const auto is_cut = [&](const AttentionTask& tile) {
    return tile_rows == kSmallTileRows && cost_of(tile) > share;
  };
  // How many pages a piece of it has, and how many floats its parts take.
  const auto run_of = [&](const AttentionTask& tile) -> int64_t {
    const int64_t cost = page_cost(rows_of(tile), tile.head_dim);
    const int64_t run = std::max<int64_t>(1, std::max(share / 2, kSmallestTask) / cost);
    return run < kLongRun ? run : (run + kSpanPages - 1) / kSpanPages * kSpanPages;
  };
  const auto part_pages_of = [&](const AttentionTask& tile) -> int64_t {
    return run_of(tile) < kLongRun ? 1 : kSpanPages;
  };
  const auto floats_of = [&](const AttentionTask& tile) {
    const int64_t pages = part_pages_of(tile);
    return (tile.end_page + pages - 1) / pages * rows_of(tile) * row_state(tile.layout.padded_dim);
  };
  int64_t floats = 0;
  for (const AttentionTask& tile : tiles) {
    if (is_cut(tile)) floats += floats_of(tile);
  }
  float* parts = floats > 0 ? context.shared_scratch<float>(static_cast<size_t>(floats)) : nullptr;

  std::vector<AttentionTask> pieces, merges;
  TaskList piece_tasks, merge_tasks;
  for (AttentionTask& tile : tiles) {
    int64_t run = tile.end_page;
    if (is_cut(tile)) {
      run = run_of(tile);
      tile.parts = parts;
      tile.part_pages = part_pages_of(tile);
      parts += floats_of(tile);
      merges.push_back(tile);
      merge_tasks.add(floats_of(tile) / 4);
    }
    AttentionTask piece = tile;
    for (int64_t page = 0; page < tile.end_page; page += run) {
      piece.first_page = page;
      piece.end_page = std::min(page + run, tile.end_page);
      pieces.push_back(piece);
      piece_tasks.add(cost_of(piece));
    }
  }
  const Functions functions = functions_for(context.isa);
  piece_tasks.run(context, [&](int64_t i, int worker) {
    AttentionTask piece = pieces[static_cast<size_t>(i)];
    piece.scratch = context.scratch<float>(worker, scratch);
    functions.attend(piece);
  });
  merge_tasks.run(context, [&](int64_t i, int worker) {
    AttentionTask tile = merges[static_cast<size_t>(i)];
    tile.scratch = context.scratch<float>(worker, scratch);
    functions.merge_parts(tile);
  });
}

}  // namespace drover
