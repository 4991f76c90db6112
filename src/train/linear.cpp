#include "train/linear.h"

#include <algorithm>

#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

// Rows that dW sums at a time: a panel of x and dy, turned and rounded, stays in the second-level
// cache with the part of dW that it is added to, where the whole would go to memory and back. An
// odd number of cache lines of bf16, since rows a power of two apart would share few sets of a
// cache.
constexpr int64_t kPanelRows = 15 * 32;
// The most columns of dy and x in a part of dW, for the same reason; and the fewest of dy, since x
// is turned again for each part.
constexpr int64_t kMostOutputs = 512, kMostInputs = 768, kLeastOutputs = 96;

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

bool in_bf16(const Parameter& w) { return w.working.size() > 0; }

// sum += the rows of dy, in order.
void add_rows(float* sum, ConstMatrixView dy) {
  for (int64_t t = 0; t < dy.rows; ++t) {
    const float* row = dy.row(t);
    for (int64_t i = 0; i < dy.cols; ++i) sum[i] += row[i];
  }
}

ConstMatrixView part_of(ConstMatrixView x, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  return {x.row(row) + col, rows, cols, x.stride};
}

}  // namespace

LinearMaps::LinearMaps(Context& context) : context_(context) {
  for (int worker = 0; worker < context.threads.size(); ++worker) {
    workers_.emplace_back(context.isa);
  }
}

void LinearMaps::forward(std::span<const LinearForward> maps) {
  std::vector<MatmulJob> jobs;
  for (const LinearForward& map : maps) {
    if (map.x.rows == 0) continue;
    jobs.push_back(
        {.x = map.x,
         .w = map.w->view(map.index),
         .out = map.y,
         .end = {.bias = map.bias == nullptr ? nullptr : map.bias->value.data(), .add = map.add},
         .rounded = in_bf16(*map.w)});
  }
  matmul(context_, jobs);
}

void LinearMaps::pass_back(std::span<const LinearBackward> maps) {
  // Of each dx the first map in one pass, the second in the next, since outputs may not overlap.
  std::vector<std::vector<MatmulJob>> passes;
  std::vector<const float*> seen;
  for (const LinearBackward& map : maps) {
    if (map.x.rows == 0 || map.dx.data == nullptr) continue;
    const auto before = static_cast<size_t>(std::count(seen.begin(), seen.end(), map.dx.data));
    seen.push_back(map.dx.data);
    if (before == passes.size()) passes.emplace_back();
    passes[before].push_back({.x = map.dy,
                              .w = map.w->transposed_view(map.index),
                              .out = map.dx,
                              .end = {.add = map.add},
                              .rounded = in_bf16(*map.w)});
  }
  for (const std::vector<MatmulJob>& jobs : passes) matmul(context_, jobs);
}

void LinearMaps::add_gradients(std::span<const LinearBackward> maps) {
  int64_t outputs = 0;
  for (const LinearBackward& map : maps) outputs += map.dy.cols;
  const int64_t fair = std::clamp(on_lines(pieces(outputs, 2 * context_.threads.size())),
                                  kLeastOutputs, kMostOutputs);
  std::vector<Part> parts;
  for (const LinearBackward& map : maps) {
    const bool taught = map.w->taught || (map.bias != nullptr && map.bias->taught);
    if (map.x.rows == 0 || !taught) continue;
    const int64_t rows = map.dy.cols, cols = map.x.cols;
    const int64_t down = on_lines(pieces(rows, pieces(rows, fair)));
    const int64_t across = on_lines(pieces(cols, pieces(cols, kMostInputs)));
    for (int64_t r = 0; r < rows; r += down) {
      for (int64_t c = 0; c < cols; c += across) {
        parts.push_back({&map, r, std::min(down, rows - r), c, std::min(across, cols - c)});
      }
    }
  }
  context_.threads.run(static_cast<int64_t>(parts.size()), [&](int64_t i, int worker) {
    add_gradient(workers_[static_cast<size_t>(worker)], parts[static_cast<size_t>(i)]);
  });
}

void LinearMaps::add_gradient(Worker& worker, const Part& part) {
  const LinearBackward& map = *part.map;
  const bool rounds = in_bf16(*map.w);
  const DType type = rounds ? DType::kBF16 : DType::kF32;
  const bool in_unit = rounds && takes_rounded(worker.context.isa, type);
  MatrixView gradient;
  if (map.w->taught) {
    gradient = map.w->gradient_of(map.index);
    gradient = {gradient.row(part.output) + part.input, part.outputs, part.inputs, gradient.stride};
  }
  for (int64_t t = 0; t < map.x.rows; t += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, map.x.rows - t);
    const int64_t T = on_lines(rows);  // with zeros at the end
    const ConstMatrixView dy = part_of(map.dy, t, rows, part.output, part.outputs);
    if (part.input == 0 && map.bias != nullptr && map.bias->taught) {
      add_rows(map.bias->gradient.data() + part.output, dy);
    }
    if (!map.w->taught) continue;
    if (in_unit) {
      transpose(worker.context, dy, worker.rounded_dy, T);
    } else {
      worker.dy.reserve_discarding(static_cast<size_t>(part.outputs * T) * sizeof(float));
      transpose(worker.context, dy, DType::kF32, worker.dy.data(), T);
    }
    const ConstMatrixView x = part_of(map.x, t, rows, part.input, part.inputs);
    worker.x.reserve_discarding(static_cast<size_t>(part.inputs * row_bytes(type, T)));
    transpose(worker.context, x, type, worker.x.data(), T);
    const MatmulJob job{.x = {reinterpret_cast<const float*>(worker.dy.data()), part.outputs, T, T},
                        .w = {worker.x.data(), type, part.inputs, T},
                        .out = gradient,
                        .end = {.add = true},
                        .rounded = rounds,
                        .x16 = in_unit ? &worker.rounded_dy : nullptr};
    matmul(worker.context, {&job, 1});
  }
}

}  // namespace drover
