// Speed of what a training step does to rows beside its products, on the machine at hand:
//   row_gradients_bench [--benchmark_filter=transpose] [--threads=N] [--isa=avx2]
// Names are operation/tokens/columns. Matrices rotate through enough copies that each is found in
// memory, as those of a step of many layers are.
//
// Reported beside the time: GB/s of what is read and what is written, a line that is overwritten
// unread counting once, and as a fraction of what these threads read from memory when they do
// nothing else, measured first.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "base/huge_pages.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/gelu/gelu.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/limits/limits.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

int g_threads = physical_cores();
Isa g_isa = detect_isa();
MachineLimits g_limits;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int64_t kAtLeast = int64_t{512} << 20;  // bytes of all copies: beyond any cache

// One of the matrices of an operation, in as many copies as there are.
struct Copies {
  AlignedArray<float> data;
  int64_t rows, cols;

  Copies(int64_t copies, int64_t rows, int64_t cols) : rows(rows), cols(cols) {
    reserve_huge(data, static_cast<size_t>(copies * rows * cols));
    uint32_t state = 1;  // numbers in [-2, 2), quickly
    for (float& x : data.span()) {
      state = state * 1664525u + 1013904223u;
      x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30f;
    }
  }
  MatrixView copy(int64_t i) { return {data.data() + i * rows * cols, rows, cols, cols}; }
};

// What an operation does with matrices of so many tokens and columns, and what it moves of each.
struct Operation {
  std::string name;
  int64_t tokens, cols;
  int matrices;
  double floats;  // moved for each element of a matrix
  std::function<void(Context&, std::vector<MatrixView>&)> body;
};

void measure(benchmark::State& state, const Operation& operation) {
  Context context(g_threads, g_isa);
  const int64_t size = operation.tokens * operation.cols;
  const int64_t copies = kAtLeast / (4 * size * operation.matrices) + 1;
  std::vector<Copies> matrices;
  for (int m = 0; m < operation.matrices; ++m) {
    matrices.emplace_back(copies, operation.tokens, operation.cols);
  }
  int64_t copy = 0;
  const auto run = [&] {
    std::vector<MatrixView> views;
    for (Copies& m : matrices) views.push_back(m.copy(copy));
    operation.body(context, views);
    copy = (copy + 1) % copies;
  };
  for (int64_t i = 0; i < copies; ++i) run();  // outputs of an operation's own get their memory
  const double start = now();
  for (auto _ : state) run();
  const double rate = static_cast<double>(state.iterations()) / (now() - start);
  const double bytes = 4 * operation.floats * static_cast<double>(size) * rate;
  state.counters["GB/s"] = bytes * 1e-9;
  state.counters["of_memory"] = bytes / g_limits.bandwidth;
}

constexpr float kEps = 1e-5f;

std::vector<Operation> operations(int64_t t, int64_t d, int64_t f, int64_t v) {
  static const std::vector<float> weight(4096, 1.0f);
  static std::vector<float> dweight(4096), dbias(4096);
  static RopeTable table;
  std::vector<int64_t> positions;
  std::vector<float> frequencies;
  for (int64_t p = 0; p < t; ++p) positions.push_back(p % 512);
  for (int64_t k = 0; k < 32; ++k) frequencies.push_back(1.0f / static_cast<float>(k + 1));
  table.fill(positions, frequencies);
  using Views = std::vector<MatrixView>;
  return {
      {"rms_norm", t, d, 2, 2,
       [](Context& c, Views& m) { rms_norm(c, m[0], m[1], weight.data(), kEps); }},
      {"rms_norm_backward", t, d, 3, 4,
       [](Context& c, Views& m) {
         rms_norm_backward(c, m[0], dweight.data(), m[1], m[2], weight.data(), kEps);
       }},
      {"rms_norm_heads_backward", t, d, 2, 3,
       [](Context& c, Views& m) {
         static std::vector<float> inverse;
         const int64_t heads = m[0].cols / 64;
         inverse.resize(static_cast<size_t>(m[0].rows * heads), 1.0f);
         const ConstMatrixView r{inverse.data(), m[0].rows, heads, heads};
         rms_norm_heads_backward(c, m[0], m[1], r, 64);
       }},
      {"layer_norm_backward", t, d, 3, 4,
       [](Context& c, Views& m) {
         layer_norm_backward(c, m[0], dweight.data(), dbias.data(), m[1], m[2], weight.data(),
                             kEps);
       }},
      {"rope_backward", t, d, 1, 2, [](Context& c, Views& m) { rope_backward(c, {m[0]}, table); }},
      {"swiglu", t, f, 3, 3, [](Context& c, Views& m) { swiglu(c, m[0], m[1], m[2]); }},
      {"swiglu_backward", t, f, 6, 6,
       [](Context& c, Views& m) { swiglu_backward(c, m[0], m[1], m[2], m[3], m[4], m[5]); }},
      {"gelu", t, f, 2, 2, [](Context& c, Views& m) { gelu(c, m[0], m[1]); }},
      {"gelu_backward", t, f, 3, 3,
       [](Context& c, Views& m) { gelu_backward(c, m[0], m[1], m[2]); }},
      {"cross_entropy", t, v, 1, 2,
       [](Context& c, Views& m) {
         static std::vector<int32_t> targets, best;
         static std::vector<float> weights, losses;
         const auto rows = static_cast<size_t>(m[0].rows);
         targets.resize(rows), best.resize(rows), weights.assign(rows, 1.0f), losses.resize(rows);
         cross_entropy(c, m[0], targets, weights, losses, best);
       }},
  };
}

std::vector<Operation> transposes(int64_t t, int64_t n) {
  using Views = std::vector<MatrixView>;
  const auto bytes = [](const MatrixView& m) { return reinterpret_cast<std::byte*>(m.data); };
  return {
      {"transpose_f32", t, n, 2, 2,
       [=](Context& c, Views& m) { transpose(c, m[0], DType::kF32, bytes(m[1])); }},
      {"transpose_bf16", t, n, 2, 1.5,
       [=](Context& c, Views& m) { transpose(c, m[0], DType::kBF16, bytes(m[1]), on_lines(t)); }},
      {"transpose_rounded", t, n, 1, 1.5,
       [](Context& c, Views& m) {
         static std::vector<RoundedRows> out(64);
         static size_t next = 0;
         RoundedRows& to = out[next++ % out.size()];
         to.resize(m[0].cols, m[0].rows);
         transpose(c, m[0], to, 0, m[0].rows);
       }},
  };
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
  std::vector<Operation> all = operations(/*t=*/8192, /*d=*/256, /*f=*/512, /*v=*/4096);
  for (const int64_t t : {1024, 4096, 4099}) {
    for (const int64_t n : {64, 256, 512}) {
      for (auto& operation : transposes(t, n)) all.push_back(std::move(operation));
    }
  }
  for (const Operation& operation : all) {
    const std::string name = operation.name + "/" + std::to_string(operation.tokens) + "/" +
                             std::to_string(operation.cols);
    benchmark::RegisterBenchmark(name.c_str(), [&operation](benchmark::State& state) {
      measure(state, operation);
    })->UseRealTime();
  }
  benchmark::RunSpecifiedBenchmarks();
}
