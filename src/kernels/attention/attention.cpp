#include "kernels/attention/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/attention/page_choice.h"
#include "kernels/attention/task_list.h"

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
// Rounded tiles have so many times as many rows, enough for all of a picture's tile: bringing pages
// into the form that the matrix unit takes would be a tenth of the work on 96 rows.
constexpr int64_t kRoundedRows = 8;
// Tiles per thread below which tiles get smaller, then cut: the last ones leave some threads idle.
constexpr int64_t kTilesPerThread = 4;
// The shortest run of pages for which whole spans are worth waiting for: half a span. Below, pages
// leave their parts one by one, some 200 pages' for each thread at most.
constexpr int64_t kLongRun = kSpanPages / 2;
// Choices are made for so many tokens at once as take this much memory, or one.
constexpr int64_t kChoosingBytes = 4 << 20;
#define DROVER_FUNCTIONS(isa)                                                               \
  {                                                                                         \
    isa::attend, /*attend_rounded=*/nullptr, isa::merge_parts, isa::peek, isa::bound_pages, \
        isa::bound_keys, isa::store_block                                                   \
  }
AttentionFunctions functions_for(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) {
    AttentionFunctions functions = DROVER_FUNCTIONS(attention_avx512);
    if (isa == Isa::kAmx) functions.attend_rounded = attention_amx::attend_rounded;
    return functions;
  }
  if (isa != Isa::kPlain) return DROVER_FUNCTIONS(attention_avx2);
#endif
  (void)isa;
  return DROVER_FUNCTIONS(attention_plain);
}
#undef DROVER_FUNCTIONS

KvType kv_type(DType type) {
  DROVER_CHECK(is_cache_type(type));
  return type == DType::kF32 ? KvType::kF32 : type == DType::kBF16 ? KvType::kBF16 : KvType::kInt8;
}

int64_t pages_for(int64_t positions) { return (positions + kPageTokens - 1) / kPageTokens; }

int64_t group_of(const AttentionJob& job) {
  return job.q.cols / (job.pages.kv_heads * job.pages.head_dim);
}

// The tile of a job's tokens [begin, end) and the query heads that share a kv head.
AttentionTask tile_of(const AttentionJob& job, int64_t kv_head, int64_t begin, int64_t end) {
  const KvPages& kv = job.pages;
  const HeadLayout layout = kv.head();
  const int64_t d = kv.head_dim, group = group_of(job), step = job.causal ? 1 : 0;
  const int64_t seen = job.first + (job.causal ? end : job.q.rows);  // of its last token
  return {.q = job.q.row(begin) + kv_head * group * d,
          .out = job.out.row(begin) + kv_head * group * d,
          .q_stride = job.q.stride,
          .out_stride = job.out.stride,
          .type = kv_type(kv.type),
          .rounded = job.rounded,
          .pages = kv.pages,
          .head_offset = kv_head * layout.bytes,
          .layout = layout,
          .head_dim = d,
          .group = group,
          .tokens = end - begin,
          .seen = seen - step * (end - begin - 1),
          .step = step,
          .first_page = 0,
          .end_page = pages_for(seen),
          .chosen = nullptr,
          .scratch = nullptr,
          .mass = nullptr,
          .parts = nullptr,
          .part_pages = 1};
}

// Tiles of all jobs with at most this many rows each, or one token.
std::vector<AttentionTask> cut_tiles(std::span<const AttentionJob> jobs, int64_t rows) {
  std::vector<AttentionTask> out;
  for (const AttentionJob& job : jobs) {
    const int64_t most = job.rounded ? kRoundedRows * rows : rows;
    const int64_t step = std::max<int64_t>(1, most / group_of(job));
    // Head after head, since the keys and values of one may stay in an L2 cache for all its tiles.
    // Of a head the later and so longer tiles first, so that no thread is left with a long one at
    // the end.
    for (int64_t head = 0; head < job.pages.kv_heads; ++head) {
      for (int64_t end = job.q.rows; end > 0; end -= std::min(step, end)) {
        out.push_back(tile_of(job, head, std::max<int64_t>(0, end - step), end));
      }
    }
  }
  return out;
}

int64_t rows_of(const AttentionTask& task) { return task.tokens * task.group; }

int64_t cost_of(const AttentionTask& task) {
  return (task.end_page - task.first_page) * page_cost(rows_of(task), task.head_dim);
}

// Runs the tiles, whose past may be cut if threads would idle.
void run_tiles(Context& context, const AttentionFunctions& functions,
               std::span<const AttentionTask> tiles, bool may_cut) {
  // A tile that is more than half of one thread's share is cut into runs of pages.
  int64_t total = 0;
  size_t scratch = 0;
  for (const AttentionTask& tile : tiles) {
    total += cost_of(tile);
    const auto scratch_of = tile.rounded ? rounded_scratch : attention_scratch;
    scratch =
        std::max(scratch, static_cast<size_t>(scratch_of(rows_of(tile), tile.layout.padded_dim)));
  }
  const int64_t share = std::max(
      context.threads.size() > 1 ? total / (2 * context.threads.size()) : total, kSmallestTask);
  const auto is_cut = [&](const AttentionTask& tile) { return may_cut && cost_of(tile) > share; };
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
  for (AttentionTask tile : tiles) {
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
  piece_tasks.run(context, [&](int64_t i, int worker) {
    AttentionTask piece = pieces[static_cast<size_t>(i)];
    piece.scratch = context.scratch<float>(worker, scratch);
    (piece.rounded ? functions.attend_rounded : functions.attend)(piece);
  });
  merge_tasks.run(context, [&](int64_t i, int worker) {
    AttentionTask tile = merges[static_cast<size_t>(i)];
    tile.scratch = context.scratch<float>(worker, scratch);
    functions.merge_parts(tile);
  });
}

// What tokens with a choice visit, and their results. One token after the other, so that a choice
// depends on nothing but its token: its tile is as small as one token.
void attend_by_choice(Context& context, const AttentionFunctions& functions,
                      std::span<const AttentionJob> jobs) {
  std::vector<ChoosingToken> tokens;
  std::vector<AttentionTask> tiles;
  std::vector<float> masses;
  int64_t bytes = 0;
  const auto run = [&] {
    choose_pages(context, functions, tokens);
    size_t rows = 0;
    for (const ChoosingToken& token : tokens) rows += static_cast<size_t>(token.task.group);
    masses.resize(2 * rows);
    float* mass = masses.data();
    for (ChoosingToken& token : tokens) {
      token.task.mass = mass;
      mass += 2 * token.task.group;
      tiles.push_back(token.task);
      if (token.pages.empty()) continue;
      tiles.back().chosen = token.pages.data();
      tiles.back().end_page = std::ssize(token.pages);
    }
    run_tiles(context, functions, tiles, /*may_cut=*/true);
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (PageVisits* visits = tokens[i].visits; visits != nullptr) {
        visits->visited += tiles[i].end_page;
        visits->seen += tokens[i].task.end_page;
        visits->kept = std::min(visits->kept, tokens[i].kept(tokens[i].task.mass));
      }
    }
    tokens.clear();
    tiles.clear();
    bytes = 0;
  };
  for (const AttentionJob& job : jobs) {
    for (int64_t t = 0; t < job.q.rows; ++t) {
      for (int64_t head = 0; head < job.pages.kv_heads; ++head) {
        ChoosingToken token;
        token.task = tile_of(job, head, t, t + 1);
        token.choice = job.choice;
        token.bounds = job.pages.bounds;
        token.bounds_offset = head * job.pages.bounds_bytes() / job.pages.kv_heads;
        token.visits = job.visits;
        bytes += choosing_bytes(token.task);
        tokens.push_back(std::move(token));
      }
      if (bytes > kChoosingBytes) run();
    }
  }
  if (!tokens.empty()) run();
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

void bound_keys(Context& context, std::span<const BoundKeysJob> jobs) {
  std::vector<KeyBoundTask> pages;
  TaskList tasks;
  for (const BoundKeysJob& job : jobs) {
    const KvPages& kv = job.pages;
    const HeadLayout layout = kv.head();
    const int64_t head_bytes = kv.bounds_bytes() / kv.kv_heads;
    for (int64_t page = job.first_page; page < job.end_page; ++page) {
      for (int64_t head = 0; head < kv.kv_heads; ++head) {
        std::byte* bounds = kv.bounds[page / kSpanPages] + head * head_bytes;
        pages.push_back({.type = kv_type(kv.type),
                         .head = kv.pages[page] + head * layout.bytes,
                         .layout = layout,
                         .head_dim = kv.head_dim,
                         .bounds = reinterpret_cast<uint16_t*>(bounds),
                         .slot = page % kSpanPages});
        tasks.add(page_cost(/*rows=*/0, kv.head_dim));
      }
    }
  }
  const auto bound = functions_for(context.isa).bound_keys;
  tasks.run(context, [&](int64_t piece, int) { bound(pages[static_cast<size_t>(piece)]); });
}

void attention(Context& context, std::span<const AttentionJob> jobs) {
  const AttentionFunctions functions = functions_for(context.isa);
  std::vector<AttentionJob> exact, choosing;
  for (const AttentionJob& job : jobs) {
    const KvPages& kv = job.pages;
    DROVER_CHECK(kv.head_dim <= kMaxHeadDim && job.q.cols % (kv.kv_heads * kv.head_dim) == 0);
    const int64_t pages = pages_for(job.first + job.q.rows);
    const bool is_exact = job.choice == nullptr || !may_leave_out(*job.choice, pages);
    DROVER_CHECK(is_exact || (job.causal && kv.bounds != nullptr));
    DROVER_CHECK(!job.rounded || (!job.causal && kv.type == DType::kBF16));
    AttentionJob taken = job;
    taken.rounded = job.rounded && functions.attend_rounded != nullptr;
    (is_exact ? exact : choosing).push_back(taken);
    if (job.visits == nullptr) continue;
    *job.visits = {};
    for (int64_t t = 0; is_exact && t < job.q.rows; ++t) {
      const int64_t seen = pages_for(job.first + (job.causal ? t + 1 : job.q.rows));
      job.visits->seen += seen * kv.kv_heads;
    }
    job.visits->visited = job.visits->seen;
  }
  const int64_t enough = context.threads.size() > 1 ? kTilesPerThread * context.threads.size() : 0;
  int64_t tile_rows = kTileRows;
  std::vector<AttentionTask> tiles = cut_tiles(exact, tile_rows);
  while (tile_rows > kSmallTileRows && static_cast<int64_t>(tiles.size()) < enough) {
    tile_rows /= 2;
    tiles = cut_tiles(exact, tile_rows);
  }
  run_tiles(context, functions, tiles, /*may_cut=*/tile_rows == kSmallTileRows);
  // Bounds hold for scores as these sets make them, with every product rounded to float.
  attend_by_choice(context, functions_for(std::min(context.isa, Isa::kAvx512)), choosing);
}

}  // namespace drover
