// Speed of attention and of storing keys and values, on the machine at hand:
//   attention_bench --benchmark_filter=prefill [--threads=N] [--isa=avx2]
// Names say what runs: prefill/SHAPE/TYPE/tokens/depth, decode/SHAPE/TYPE/sequences/depth,
// store/SHAPE/TYPE/sequences/tokens, bound/SHAPE/TYPE/1/tokens of their pages' bounds,
// tiles/SHAPE/TYPE/tiles/tokens without a causal limit, as in the vision encoder, rounded if in
// bf16, and
// WHICH_KEYS/SHAPE/TYPE/tokens/depth for the last tokens of a long sequence that visit pages by
// choice, of keys that let them stop early or do not. Caches rotate through enough copies that a
// step finds its past in memory, as a model of many layers does.
//
// Reported beside the time: GFLOP/s, counting the multiplications and additions that a causal
// limit leaves (the exponential counts nothing), GB/s of the cache, and both as a
// fraction of what these threads reach here when they do nothing else, measured first.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/limits/limits.h"
#include "tensor/float16.h"

namespace drover {
namespace {

struct Shape {
  const char* name;
  int64_t heads, kv_heads, d;
};

int g_threads = physical_cores();
Isa g_isa = detect_isa();
MachineLimits g_limits;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Memory as a big cache has it: mapped in one piece, in pages of 2 MiB where the system has them.
class Slab {
 public:
  explicit Slab(int64_t bytes) : size_(static_cast<size_t>(bytes)) {
    void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) std::abort();
    madvise(p, size_, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(p);
  }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  ~Slab() { munmap(data_, size_); }
  std::byte* data() const { return data_; }

 private:
  size_t size_;
  std::byte* data_;
};

// One layer's cache of `copies` times `sequences` sequences of `positions` random tokens.
struct Caches {
  std::unique_ptr<Slab> slab;
  std::vector<std::vector<std::byte*>> pages;
  KvPages shape;

  // With `clusters` the keys of a page are near each other and those of other pages are not.
  Caches(Context& context, const Shape& s, DType type, int64_t count, int64_t positions,
         bool clusters = false) {
    shape = {nullptr, type, s.kv_heads, s.d};
    const int64_t cols = s.kv_heads * s.d;
    std::vector<float> tokens(static_cast<size_t>(kPageTokens * cols)), keys(tokens.size());
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& x : tokens) x = normal(random);
    keys = tokens;
    const int64_t each = (positions + kPageTokens - 1) / kPageTokens;
    slab = std::make_unique<Slab>(count * each * shape.page_bytes());
    std::byte* next = slab->data();
    for (int64_t i = 0; i < count; ++i) {
      pages.emplace_back();
      for (int64_t p = 0; p < each; ++p, next += shape.page_bytes()) pages.back().push_back(next);
      const ConstMatrixView values(tokens.data(), kPageTokens, cols, cols);
      const ConstMatrixView view(keys.data(), kPageTokens, cols, cols);
      for (int64_t p = 0; p < positions; p += kPageTokens) {
        if (clusters) {
          std::vector<float> place(static_cast<size_t>(cols));
          for (float& x : place) x = normal(random);
          for (size_t j = 0; j < keys.size(); ++j) {
            keys[j] = place[j % place.size()] + 0.1f * tokens[j];
          }
        }
        const KvStoreJob job{sequence(i), p, view, values};
        store_kv(context, {&job, 1});
      }
    }
  }
  KvPages sequence(int64_t i) const {
    KvPages out = shape;
    out.pages = pages[static_cast<size_t>(i)].data();
    return out;
  }
};

// Bounds of the full pages of a sequence.
struct Bounds {
  std::vector<AlignedArray<std::byte>> memory;
  std::vector<std::byte*> spans;

  Bounds(KvPages& pages, int64_t positions) {
    for (int64_t p = 0; p < positions; p += kPageTokens * kSpanPages) {
      memory.emplace_back(static_cast<size_t>(pages.bounds_bytes()));
      spans.push_back(memory.back().data());
    }
    pages.bounds = spans.data();
  }
};

// Runs body again and again; each run does so many operations and touches so many bytes.
template <typename Body>
void measure(benchmark::State& state, double flops, double bytes, const Body& body) {
  const double start = now();
  for (auto _ : state) body();
  const double rate = static_cast<double>(state.iterations()) / (now() - start);
  state.counters["GB/s"] = bytes * rate * 1e-9;
  state.counters["of_bytes"] = bytes * rate / g_limits.bandwidth;
  if (flops > 0) state.counters["GFLOP/s"] = flops * rate * 1e-9;
  if (flops > 0) state.counters["of_flops"] = flops * rate / g_limits.float_rate;
}

// `tokens` new tokens in each of `sequences` sequences that remember `depth` tokens before them.
void bench_attention(benchmark::State& state, Shape s, DType type, int64_t sequences,
                     int64_t tokens, int64_t depth, bool causal = true) {
  Context context(g_threads, g_isa);
  const int64_t positions = depth + tokens, q_cols = s.heads * s.d;
  const int64_t bytes =
      sequences * positions * KvPages{nullptr, type, s.kv_heads, s.d}.page_bytes() / kPageTokens;
  const int64_t copies = tokens > 1 ? 1 : (int64_t{512} << 20) / bytes + 1;
  const Caches caches(context, s, type, copies * sequences, positions);
  std::vector<float> q(static_cast<size_t>(sequences * tokens * q_cols)), out(q.size());
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float& x : q) x = normal(random);
  int64_t copy = 0;
  std::vector<AttentionJob> jobs(static_cast<size_t>(sequences));
  const double pairs =
      static_cast<double>(sequences * tokens) *
      (static_cast<double>(depth) + static_cast<double>(causal ? tokens + 1 : 2 * tokens) / 2);
  const double flops = 4.0 * static_cast<double>(s.d * s.heads) * pairs;
  measure(state, flops, static_cast<double>(bytes), [&] {
    for (int64_t i = 0; i < sequences; ++i) {
      const int64_t row = i * tokens;
      jobs[static_cast<size_t>(i)] = {{q.data() + row * q_cols, tokens, q_cols, q_cols},
                                      caches.sequence(copy * sequences + i),
                                      depth,
                                      {out.data() + row * q_cols, tokens, q_cols, q_cols},
                                      causal};
      jobs[static_cast<size_t>(i)].rounded = !causal && type == DType::kBF16;
    }
    attention(context, jobs);
    copy = (copy + 1) % copies;
  });
}

void bench_store(benchmark::State& state, Shape s, DType type, int64_t sequences, int64_t tokens) {
  Context context(g_threads, g_isa);
  const int64_t cols = s.kv_heads * s.d;
  const Caches caches(context, s, type, sequences, tokens);
  std::vector<float> x(static_cast<size_t>(sequences * tokens * cols), 0.5f);
  std::vector<KvStoreJob> jobs;
  for (int64_t i = 0; i < sequences; ++i) {
    const ConstMatrixView rows(x.data() + i * tokens * cols, tokens, cols, cols);
    jobs.push_back({caches.sequence(i), 0, rows, rows});
  }
  // What is read: keys and values as floats.
  measure(state, 0, static_cast<double>(x.size() * 2 * sizeof(float)),
          [&] { store_kv(context, jobs); });
}

void bench_bound(benchmark::State& state, Shape s, DType type, int64_t tokens) {
  Context context(g_threads, g_isa);
  const Caches caches(context, s, type, 1, tokens);
  KvPages pages = caches.sequence(0);
  const Bounds bounds(pages, tokens);
  const BoundKeysJob job{pages, 0, tokens / kPageTokens};
  const int64_t keys = tokens * s.kv_heads * s.d;
  measure(state, 0, static_cast<double>(row_bytes(type, keys)), [&] {
    bound_keys(context, {&job, 1});
  });
}

// The last tokens of a sequence of `depth` look for the keys of one of its pages. GB/s are of the
// whole cache, as if all of it were read.
void bench_choice(benchmark::State& state, Shape s, DType type, int64_t tokens, int64_t depth,
                  const PageChoice* choice, bool clusters) {
  Context context(g_threads, g_isa);
  const Caches caches(context, s, type, 1, depth, clusters);
  KvPages pages = caches.sequence(0);
  const Bounds bounds(pages, depth);
  const BoundKeysJob bound{pages, 0, depth / kPageTokens};
  bound_keys(context, {&bound, 1});
  // A key of the page in the middle, as its bounds give it away.
  std::vector<float> q(static_cast<size_t>(tokens * s.heads * s.d)), out(q.size());
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const int64_t page = depth / kPageTokens / 2;
  const auto* span = reinterpret_cast<const bf16*>(pages.bounds[page / kSpanPages]);
  for (size_t j = 0; j < q.size(); ++j) {
    const int64_t i = static_cast<int64_t>(j) % s.d;
    const int64_t head = static_cast<int64_t>(j) / s.d % s.heads / (s.heads / s.kv_heads);
    const bf16* key = span + (head * s.d + i) * 2 * kSpanPages + page % kSpanPages;
    q[j] = 4.0f * (to_float(key[0]) + to_float(key[kSpanPages])) / 2 + 0.2f * normal(random);
  }
  PageVisits visits;
  const int64_t cols = s.heads * s.d;
  const AttentionJob job{{q.data(), tokens, cols, cols},
                         pages,
                         depth - tokens,
                         {out.data(), tokens, cols, cols},
                         /*causal=*/true,
                         choice,
                         &visits};
  measure(state, 0, static_cast<double>(depth / kPageTokens * pages.page_bytes()), [&] {
    attention(context, {&job, 1});
  });
  state.counters["pages"] = static_cast<double>(visits.visited) / static_cast<double>(visits.seen);
  state.counters["kept"] = static_cast<double>(visits.kept);
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  using namespace drover;
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with("--threads=")) g_threads = std::max(1, std::atoi(argv[i] + 10));
    if (argument.starts_with("--isa=")) g_isa = isa_from_name(argument.substr(6)).value_or(g_isa);
  }
  {
    Context context(g_threads, g_isa);
    g_limits = measure_limits(context);
  }
  const auto add = [](const std::string& what, const Shape& s, DType type, int64_t a, int64_t b,
                      auto body) {
    const std::string name = what + "/" + s.name + "/" + std::string(dtype_name(type)) + "/" +
                             std::to_string(a) + "/" + std::to_string(b);
    benchmark::RegisterBenchmark(name.c_str(), body)->UseRealTime();
  };
  for (const Shape s :
       {Shape{"edge", 16, 4, 64}, Shape{"scout", 40, 8, 128}, Shape{"long", 8, 2, 64}}) {
    for (const DType type : {DType::kBF16, DType::kF32, DType::kI8}) {
      for (const auto& [tokens, depth] :
           {std::pair<int64_t, int64_t>{512, 0}, {2048, 0}, {512, 16384}, {8, 16384}}) {
        add("prefill", s, type, tokens, depth,
            [=](benchmark::State& state) { bench_attention(state, s, type, 1, tokens, depth); });
      }
      for (const auto& [sequences, depth] : {std::pair<int64_t, int64_t>{1, 4096},
                                             {1, 16384},
                                             {1, 65536},
                                             {1, 1 << 20},
                                             {64, 20},
                                             {64, 300}}) {
        add("decode", s, type, sequences, depth,
            [=](benchmark::State& state) { bench_attention(state, s, type, sequences, 1, depth); });
      }
      add("bound", s, type, 1, 512,
          [=](benchmark::State& state) { bench_bound(state, s, type, 512); });
      for (const auto& [sequences, tokens] :
           {std::pair<int64_t, int64_t>{1, 512}, {1, 1}, {64, 1}}) {
        add("store", s, type, sequences, tokens,
            [=](benchmark::State& state) { bench_store(state, s, type, sequences, tokens); });
      }
    }
  }
  static constexpr PageChoice kChoices[] = {{PageChoice::Mode::kBounded, 1e-3f, 0},
                                            {PageChoice::Mode::kBudget, 0, 64}};
  for (const auto& [tokens, depth] :
       {std::pair<int64_t, int64_t>{1, 1'000'000}, {1, 10'000'000}, {512, 1'000'000}}) {
    const Shape s{"long", 8, 2, 64};
    const DType type = DType::kI8;
    for (const bool clusters : {true, false}) {
      const std::string keys = clusters ? "_clusters" : "_random";
      for (const PageChoice* choice :
           {static_cast<const PageChoice*>(nullptr), &kChoices[0], &kChoices[1]}) {
        const char* which = choice == nullptr ? "exact" : choice == kChoices ? "bounded" : "budget";
        add(which + keys, s, type, tokens, depth, [=](benchmark::State& state) {
          bench_choice(state, s, type, tokens, depth, choice, clusters);
        });
      }
    }
  }
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t tiles : {1, 4}) {
      const Shape s{"vision", 16, 16, 88};
      add("tiles", s, type, tiles, 577, [=](benchmark::State& state) {
        bench_attention(state, s, type, tiles, 577, 0, /*causal=*/false);
      });
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
