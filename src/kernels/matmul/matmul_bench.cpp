// Speed of matmul by weight type, K, N and tokens, on the machine at hand:
//   matmul_bench --benchmark_filter=q4_0 [--threads=N] [--isa=avx2]
// Weights rotate through enough copies that a token finds them in memory, not in a cache, as a
// model does. Reported beside the time: GB/s of weights, and TOP/s counting 2 operations per
// product, and what part that is of the dot rate that the machine shows with nothing else to do.
// "rounded" is what vision asks for.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "kernels/limits/limits.h"
#include "kernels/matmul/matmul.h"
#include "tensor/quantize.h"

namespace drover {
namespace {

constexpr int64_t kMemoryBytes = int64_t{512} << 20;  // larger than the caches a core can use

int g_threads = 0;
Isa g_isa = detect_isa();
MachineLimits g_limits;

void bench_matmul(benchmark::State& state, DType type, int64_t n, int64_t k, int64_t tokens,
                  bool rounded) {
  Context context(g_threads > 0 ? g_threads : physical_cores(), g_isa);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const int64_t row = row_bytes(type, k);
  const int64_t copies = tokens <= 16 ? kMemoryBytes / (row * n) + 1 : 2;
  std::vector<float> values(static_cast<size_t>(k));
  std::vector<std::byte> weights(static_cast<size_t>(copies * row * n));
  for (float& v : values) v = normal(random);
  quantize_row(type, values, weights.data());
  for (int64_t r = 1; r < copies * n; ++r) std::memcpy(&weights[r * row], weights.data(), row);

  // On cache lines, as a model's activations are.
  AlignedArray<float> x(static_cast<size_t>(tokens * k)), out(static_cast<size_t>(tokens * n));
  for (int64_t i = 0; i < tokens * k; ++i) x.data()[i] = normal(random);
  const ConstMatrixView x_view(x.data(), tokens, k, k);
  Int8Rows x8;
  const bool quantized = is_quantized(type) && !(rounded && takes_rounded(g_isa, type));
  int64_t copy = 0;
  for (auto _ : state) {
    if (quantized) quantize_rows(context, x_view, x8);
    const MatmulJob job{.x = x_view,
                        .x8 = quantized ? &x8 : nullptr,
                        .x8_row = 0,
                        .w = {weights.data() + copy * row * n, type, n, k},
                        .out = {out.data(), tokens, n, n},
                        .rounded = rounded};
    matmul(context, {&job, 1});
    copy = (copy + 1) % copies;
  }
  const double runs = static_cast<double>(state.iterations());
  state.counters["GB/s"] =
      benchmark::Counter(runs * static_cast<double>(row * n) * 1e-9, benchmark::Counter::kIsRate);
  state.counters["TOP/s"] = benchmark::Counter(runs * 2e-12 * static_cast<double>(n * k * tokens),
                                               benchmark::Counter::kIsRate);
  const int unit = matrix_unit_products(g_isa, type, rounded);
  const double peak = unit        ? g_limits.bf16_rate / unit
                      : quantized ? g_limits.int8_rate
                                  : g_limits.float_rate;
  state.counters["of peak"] = benchmark::Counter(
      runs * 2 * static_cast<double>(n * k * tokens) / peak, benchmark::Counter::kIsRate);
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  using namespace drover;
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with("--threads=")) g_threads = std::atoi(argv[i] + 10);
    if (argument.starts_with("--isa=")) g_isa = isa_from_name(argument.substr(6)).value_or(g_isa);
  }
  {
    Context context(g_threads > 0 ? g_threads : physical_cores(), g_isa);
    g_limits = measure_limits(context);
  }
  struct Shape {
    int64_t n, k;
  };
  for (DType type :
       {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ4_K,
        DType::kQ5_K, DType::kQ6_K, DType::kQ2_K, DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS,
        DType::kMXFP4, DType::kBF16, DType::kF16, DType::kF32}) {
    const auto add = [&](Shape shape, int64_t tokens, bool rounded) {
      std::string name = std::string(dtype_name(type)) + (rounded ? "/rounded" : "") +
                         "/n:" + std::to_string(shape.n);
      if (shape.k != shape.n) name += "/k:" + std::to_string(shape.k);
      name += "/tokens:" + std::to_string(tokens);
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
        bench_matmul(state, type, shape.n, shape.k, tokens, rounded);
      })->UseRealTime();
    };
    for (int64_t n : {1024, 2048, 4096, 5120}) {
      for (int64_t tokens : {1, 2, 4, 8, 16, 32, 64, 128, 512, 577}) add({n, n}, tokens, false);
    }
    // The feed-forward of vision, for one tile and for four.
    if (5632 % dtype_info(type).block_values == 0 && 1408 % dtype_info(type).block_values == 0) {
      for (int64_t tokens : {577, 2308}) {
        for (const bool rounded : {false, true}) {
          if (rounded && !takes_rounded(g_isa, type)) continue;
          add({5632, 1408}, tokens, rounded);
          add({1408, 5632}, tokens, rounded);
        }
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
