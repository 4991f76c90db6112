#include "train/linear.h"

#include <algorithm>

#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

// dW is summed in panels of some 512 rows: x and dy, turned and rounded, stay in the second-level
// cache with the part of dW that they are added to, where the whole would go to memory and back.
constexpr int64_t kPanelRows = 576;  // at most
// The most columns of x, of dy in a strip, and of dy in a part, for the same reason; and the fewest
// of dy, since x is turned again for each part.
constexpr int64_t kMostInputs = 768, kMostStrip = 512, kMostOutputs = 1024, kLeastOutputs = 96;

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

// As equal panels as whole cache lines of bf16 make, and not rows a power of two apart, which would
// share few sets of a cache.
int64_t panel_rows(int64_t rows) {
  const int64_t each = on_lines(pieces(rows, pieces(rows, kPanelRows)));
  return each % 256 == 0 ? each + 32 : each;
}

bool same(ConstMatrixView a, ConstMatrixView b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride;
}

bool in_bf16(const Parameter& w) { return w.working.size() > 0; }

// sum += the rows of dy, in order.
void add_rows(float* sum, ConstMatrixView dy) {
  for (int64_t t = 0; t < dy.rows; ++t) {
    const float* row = dy.row(t);
    for (int64_t i = 0; i < dy.cols; ++i) sum[i] += row[i];
  }
}

bool has_gradient(const LinearBackward& map) {
  return map.w->taught || (map.bias != nullptr && map.bias->taught);
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
  for (const LinearBackward& map : maps) outputs += has_gradient(map) ? map.dy.cols : 0;
  const int64_t fair = std::clamp(on_lines(pieces(outputs, 2 * context_.threads.size())),
                                  kLeastOutputs, kMostOutputs);
  std::vector<Part> parts;
  for (size_t i = 0, end = 0; i < maps.size(); i = end) {
    while (end < maps.size() && same(maps[end].x, maps[i].x) &&
           in_bf16(*maps[end].w) == in_bf16(*maps[i].w)) {
      ++end;
    }
    if (maps[i].x.rows > 0) add_parts(maps.subspan(i, end - i), fair, parts);
  }
  context_.threads.run(static_cast<int64_t>(parts.size()), [&](int64_t i, int worker) {
    add_gradients_of(workers_[static_cast<size_t>(worker)], parts[static_cast<size_t>(i)]);
  });
}

void LinearMaps::add_parts(std::span<const LinearBackward> maps, int64_t columns,
                           std::vector<Part>& parts) {
  const int64_t cols = maps[0].x.cols, across = on_lines(pieces(cols, pieces(cols, kMostInputs)));
  for (int64_t input = 0; input < cols; input += across) {
    int64_t room = 0;  // in the last part
    for (const LinearBackward& map : maps) {
      if (!has_gradient(map)) continue;
      const int64_t rows = map.dy.cols;
      const int64_t down = on_lines(pieces(rows, pieces(rows, std::min(columns, kMostStrip))));
      for (int64_t first = 0; first < rows; first += down) {
        const int64_t count = std::min(down, rows - first);
        if (room < count) {
          parts.push_back({input, std::min(across, cols - input), {}});
          room = columns;
        }
        parts.back().strips.push_back({&map, first, count});
        room -= count;
      }
    }
  }
}

void LinearMaps::add_gradients_of(Worker& worker, const Part& part) {
  const LinearBackward& one = *part.strips[0].map;
  const bool rounds = in_bf16(*one.w);
  const DType type = rounds ? DType::kBF16 : DType::kF32;
  const bool in_unit = rounds && takes_rounded(worker.context.isa, type);
  const int64_t panel = panel_rows(one.x.rows);
  const bool any_matrix = std::any_of(part.strips.begin(), part.strips.end(),
                                      [](const Strip& strip) { return strip.map->w->taught; });
  for (int64_t t = 0; t < one.x.rows; t += panel) {
    const int64_t rows = std::min(panel, one.x.rows - t);
    int64_t T = on_lines(rows);  // with zeros at the end
    if (T % 256 == 0) T += 32;
    if (any_matrix) {
      worker.x.reserve_discarding(static_cast<size_t>(part.inputs * row_bytes(type, T)));
      transpose(worker.context, part_of(one.x, t, rows, part.input, part.inputs), type,
                worker.x.data(), T);
    }
    for (const Strip& strip : part.strips) {
      const LinearBackward& map = *strip.map;
      const ConstMatrixView dy = part_of(map.dy, t, rows, strip.first, strip.count);
      if (part.input == 0 && map.bias != nullptr && map.bias->taught) {
        add_rows(map.bias->gradient.data() + strip.first, dy);
      }
      if (!map.w->taught) continue;
      if (in_unit) {
        transpose(worker.context, dy, worker.rounded_dy, T);
      } else {
        worker.dy.reserve_discarding(static_cast<size_t>(strip.count * T) * sizeof(float));
        transpose(worker.context, dy, DType::kF32, worker.dy.data(), T);
      }
      const MatrixView gradient = map.w->gradient_of(map.index);
      const MatmulJob job{
          .x = {reinterpret_cast<const float*>(worker.dy.data()), strip.count, T, T},
          .w = {worker.x.data(), type, part.inputs, T},
          .out = {gradient.row(strip.first) + part.input, strip.count, part.inputs,
                  gradient.stride},
          .end = {.add = true},
          .rounded = rounds,
          .x16 = in_unit ? &worker.rounded_dy : nullptr};
      matmul(worker.context, {&job, 1});
    }
  }
}

}  // namespace drover
