// Speed of packed attention, on the machine at hand:
//   packed_attention_bench [--benchmark_filter=backward] [--threads=N] [--isa=avx2]
// Names say what runs: PASS/FORM/HxKxd/rows of a span, causal unless it says "all"; a batch has
// 8,192 rows, of "all" 32 spans. FORM is "float" or "rounded". Reported beside the time: GFLOP/s,
// counting the multiplications and additions of two products forward and five backward over the
// pairs that see each other (the exponential counts nothing), and that as a fraction of what these
// threads reach when they only multiply floats, measured first.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/limits/limits.h"
#include "kernels/packed_attention/packed_attention.h"

namespace drover {
namespace {

int g_threads = physical_cores();
Isa g_isa = detect_isa();
MachineLimits g_limits;

struct Kind {
  int64_t heads, kv_heads, d, span;
  bool causal;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void measure(benchmark::State& state, const Kind& kind, bool rounded, bool backward) {
  Context context(g_threads, g_isa);
  std::vector<RowSpan> spans;
  const int64_t count = kind.causal ? 8192 / kind.span : 32, rows = count * kind.span;
  for (int64_t i = 0; i < count; ++i) spans.push_back({i * kind.span, kind.span});
  const int64_t q_cols = kind.heads * kind.d, kv_cols = kind.kv_heads * kind.d;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto make = [&](int64_t cols) {
    std::vector<float> x(static_cast<size_t>(rows * cols));
    for (float& one : x) one = normal(random);
    return x;
  };
  auto q = make(q_cols), k = make(kv_cols), v = make(kv_cols), out = make(q_cols);
  auto log_sums = make(kind.heads), dout = make(q_cols), dq = q, dk = k, dv = v;
  const auto view = [&](std::vector<float>& x, int64_t cols) {
    return MatrixView{x.data(), rows, cols, cols};
  };
  const PackedAttention how{.heads = kind.heads,
                            .kv_heads = kind.kv_heads,
                            .head_dim = kind.d,
                            .spans = spans,
                            .causal = kind.causal,
                            .rounded = rounded};
  const auto forward_pass = [&] {
    packed_attention(context, how, view(out, q_cols), view(log_sums, kind.heads), view(q, q_cols),
                     view(k, kv_cols), view(v, kv_cols));
  };
  forward_pass();
  const double start = now();
  for (auto _ : state) {
    if (!backward) {
      forward_pass();
      continue;
    }
    packed_attention_backward(context, how, view(dq, q_cols), view(dk, kv_cols), view(dv, kv_cols),
                              view(dout, q_cols), view(out, q_cols), view(log_sums, kind.heads),
                              view(q, q_cols), view(k, kv_cols), view(v, kv_cols));
  }
  const double rate = static_cast<double>(state.iterations()) / (now() - start);
  const double pairs = static_cast<double>(rows * kind.heads) *
                       static_cast<double>(kind.causal ? kind.span + 1 : 2 * kind.span) / 2;
  const double flops = (backward ? 5 : 2) * 2.0 * static_cast<double>(kind.d) * pairs;
  state.counters["GFLOP/s"] = flops * rate * 1e-9;
  state.counters["of_float"] = flops * rate / g_limits.float_rate;
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
  for (const bool backward : {false, true}) {
    for (const bool rounded : {false, true}) {
      for (const Kind kind :
           {Kind{4, 1, 64, 512, true}, Kind{8, 2, 32, 512, true}, Kind{9, 3, 64, 512, true},
            Kind{4, 1, 64, 4096, true}, Kind{4, 1, 64, 128, true}, Kind{6, 6, 32, 197, false}}) {
        const std::string name =
            std::string(backward ? "backward/" : "forward/") + (rounded ? "rounded/" : "float/") +
            std::to_string(kind.heads) + "x" + std::to_string(kind.kv_heads) + "x" +
            std::to_string(kind.d) + "/" + std::to_string(kind.span) + (kind.causal ? "" : "/all");
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          measure(state, kind, rounded, backward);
        })->UseRealTime();
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
