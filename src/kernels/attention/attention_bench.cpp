// Speed of attention and of storing keys and values, on the machine at hand:
//   attention_bench --benchmark_filter=prefill [--threads=N] [--isa=avx2]
// Names say what runs: prefill/SHAPE/TYPE/tokens/depth, decode/SHAPE/TYPE/sequences/depth,
// store/SHAPE/TYPE/sequences/tokens. Caches rotate through enough copies that a step finds its past
// in memory, as a model of many layers does.
//
// Reported beside the time: FLOP/s, counting the multiplications and additions that the causal
// limit leaves (the exponential counts nothing), bytes of the cache per second, and both as a
// fraction of what these threads reach here when they do nothing else, measured first.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention/attention.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace drover {
namespace {

struct Shape {
  const char* name;
  int64_t heads, kv_heads, d;
};

int g_threads = physical_cores();
Isa g_isa = detect_isa();
double g_flops = 0, g_bytes = 0;  // what all threads reach together, per second

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__x86_64__)
// Independent chains of fused multiply-adds, enough to cover their latency.
constexpr int kChains = 12;
__attribute__((target("avx512f"))) float multiply_avx512(int64_t rounds) {
  __m512 sum[kChains], a = _mm512_set1_ps(0.99f), b = _mm512_set1_ps(0.01f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t i = 0; i < rounds; ++i) {
    for (__m512& s : sum) s = _mm512_fmadd_ps(s, a, b);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}
__attribute__((target("avx2,fma"))) float multiply_avx2(int64_t rounds) {
  __m256 sum[kChains], a = _mm256_set1_ps(0.99f), b = _mm256_set1_ps(0.01f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int64_t i = 0; i < rounds; ++i) {
    for (__m256& s : sum) s = _mm256_fmadd_ps(s, a, b);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return _mm256_cvtss_f32(sum[0]);
}
#endif

#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
uint64_t
read_words(const uint64_t* words, int64_t n) {
  uint64_t sum[16] = {};
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    for (int k = 0; k < 16; ++k) sum[k] ^= words[i + k];
  }
  for (int k = 1; k < 16; ++k) sum[0] ^= sum[k];
  return sum[0];
}

void measure_machine() {
  ThreadPool threads(g_threads);
  constexpr int64_t kRounds = 10'000'000;
  double lanes = 0;
  const double start = now();
  threads.run(g_threads, [&](int64_t, int) {
#if defined(__x86_64__)
    if (g_isa == Isa::kAvx512) benchmark::DoNotOptimize(multiply_avx512(kRounds));
    if (g_isa == Isa::kAvx2) benchmark::DoNotOptimize(multiply_avx2(kRounds));
    lanes = g_isa == Isa::kAvx512 ? 16 : g_isa == Isa::kAvx2 ? 8 : 0;
#endif
  });
  g_flops = lanes * 2 * kChains * kRounds * g_threads / (now() - start);

  const int64_t words = int64_t{64} << 20;  // 512 MiB each
  std::vector<uint64_t> memory(static_cast<size_t>(words * g_threads), 1);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double begin = now();
    threads.run(g_threads, [&](int64_t thread, int) {
      benchmark::DoNotOptimize(read_words(memory.data() + thread * words, words));
    });
    g_bytes = std::max(g_bytes, static_cast<double>(words * g_threads) * 8 / (now() - begin));
  }
  std::printf("%d threads, %s: %.1f GFLOP/s, %.1f GB/s\n", g_threads,
              std::string(isa_name(g_isa)).c_str(), g_flops * 1e-9, g_bytes * 1e-9);
}

// One layer's cache of `copies` times `sequences` sequences of `positions` random tokens.
struct Caches {
  std::vector<AlignedArray<std::byte>> memory;
  std::vector<std::vector<std::byte*>> pages;
  KvPages shape;

  Caches(Context& context, const Shape& s, DType type, int64_t count, int64_t positions) {
    shape = {nullptr, type, s.kv_heads, s.d};
    const int64_t cols = s.kv_heads * s.d;
    std::vector<float> tokens(static_cast<size_t>(kPageTokens * cols));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& x : tokens) x = normal(random);
    for (int64_t i = 0; i < count; ++i) {
      pages.emplace_back();
      for (int64_t p = 0; p < positions; p += kPageTokens) {
        memory.emplace_back(static_cast<size_t>(shape.page_bytes()));
        pages.back().push_back(memory.back().data());
      }
      const ConstMatrixView view(tokens.data(), kPageTokens, cols, cols);
      for (int64_t p = 0; p < positions; p += kPageTokens) {
        const KvStoreJob job{sequence(i), p, view, view};
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

void report(benchmark::State& state, double flops, double bytes) {
  const double runs = static_cast<double>(state.iterations());
  const auto rate = [&](const char* name, double amount) {
    state.counters[name] = benchmark::Counter(runs * amount, benchmark::Counter::kIsRate);
  };
  if (flops > 0) rate("FLOP/s", flops);
  if (flops > 0 && g_flops > 0) rate("of_flops", flops / g_flops);
  rate("bytes/s", bytes);
  rate("of_bytes", bytes / g_bytes);
}

// `tokens` new tokens in each of `sequences` sequences that remember `depth` tokens before them.
void bench_attention(benchmark::State& state, Shape s, DType type, int64_t sequences,
                     int64_t tokens, int64_t depth) {
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
  for (auto _ : state) {
    for (int64_t i = 0; i < sequences; ++i) {
      const int64_t row = i * tokens;
      jobs[static_cast<size_t>(i)] = {{q.data() + row * q_cols, tokens, q_cols, q_cols},
                                      caches.sequence(copy * sequences + i),
                                      depth,
                                      {out.data() + row * q_cols, tokens, q_cols, q_cols}};
    }
    attention(context, jobs);
    copy = (copy + 1) % copies;
  }
  const double pairs = static_cast<double>(sequences * tokens) *
                       (static_cast<double>(depth) + static_cast<double>(tokens + 1) / 2);
  report(state, 4.0 * static_cast<double>(s.d * s.heads) * pairs, static_cast<double>(bytes));
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
  for (auto _ : state) store_kv(context, jobs);
  // What is read: keys and values as floats.
  report(state, 0, static_cast<double>(x.size() * 2 * sizeof(float)));
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
  measure_machine();
  const auto add = [](const std::string& what, const Shape& s, DType type, int64_t a, int64_t b,
                      auto body) {
    const std::string name = what + "/" + s.name + "/" + std::string(dtype_name(type)) + "/" +
                             std::to_string(a) + "/" + std::to_string(b);
    benchmark::RegisterBenchmark(name.c_str(), body)->UseRealTime();
  };
  for (const Shape s : {Shape{"edge", 16, 4, 64}, Shape{"scout", 40, 8, 128}}) {
    for (const DType type : {DType::kBF16, DType::kF32, DType::kI8}) {
      for (const auto& [tokens, depth] :
           {std::pair<int64_t, int64_t>{512, 0}, {2048, 0}, {512, 16384}, {8, 16384}}) {
        add("prefill", s, type, tokens, depth,
            [=](benchmark::State& state) { bench_attention(state, s, type, 1, tokens, depth); });
      }
      for (const auto& [sequences, depth] :
           {std::pair<int64_t, int64_t>{1, 4096}, {1, 16384}, {1, 65536}, {64, 20}, {64, 300}}) {
        add("decode", s, type, sequences, depth,
            [=](benchmark::State& state) { bench_attention(state, s, type, sequences, 1, depth); });
      }
      for (const auto& [sequences, tokens] :
           {std::pair<int64_t, int64_t>{1, 512}, {1, 1}, {64, 1}}) {
        add("store", s, type, sequences, tokens,
            [=](benchmark::State& state) { bench_store(state, s, type, sequences, tokens); });
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
