#include "train/linear.h"

#include <algorithm>

#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

// The most columns of x and of dy that a thread takes at a time, so that dW of them stays in its
// second-level cache; and the fewest of dy, since x is turned again for each part.
constexpr int64_t kMostInputs = 768, kMostOutputs = 1024, kLeastOutputs = 96;

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

int64_t outputs_of(const LinearBackward& map) { return map.w->rows; }
int64_t rows_of(const LinearBackward& map) {
  return map.turned_x != nullptr ? map.turned_x->panels().rows() : map.x.rows;
}

bool in_bf16(const Parameter& w) { return w.working.size() > 0; }

bool read_the_same(const LinearBackward& a, const LinearBackward& b) {
  return a.x.data == b.x.data && a.x.rows == b.x.rows && a.x.cols == b.x.cols &&
         a.x.stride == b.x.stride && a.turned_x == b.turned_x &&
         in_bf16(*a.w) == in_bf16(*b.w);
}

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
  for (const LinearBackward& map : maps) outputs += has_gradient(map) ? outputs_of(map) : 0;
  const int64_t fair = std::clamp(on_lines(pieces(outputs, 2 * context_.threads.size())),
                                  kLeastOutputs, kMostOutputs);
  std::vector<Part> parts;
  for (size_t i = 0, end = 0; i < maps.size(); i = end) {
    while (end < maps.size() && read_the_same(maps[end], maps[i])) ++end;
    if (rows_of(maps[i]) > 0) add_parts(maps.subspan(i, end - i), fair, parts);
  }
  context_.threads.run(static_cast<int64_t>(parts.size()), [&](int64_t i, int worker) {
    add_gradients_of(workers_[static_cast<size_t>(worker)], parts[static_cast<size_t>(i)]);
  });
}

void LinearMaps::add_parts(std::span<const LinearBackward> maps, int64_t columns,
                           std::vector<Part>& parts) {
  const int64_t cols = maps[0].w->cols, across = on_lines(pieces(cols, pieces(cols, kMostInputs)));
  for (int64_t input = 0; input < cols; input += across) {
    int64_t room = 0;  // in the last part
    for (const LinearBackward& map : maps) {
      if (!has_gradient(map)) continue;
      for (int64_t strip = 0; strip * TurnedOutput::kStrip < outputs_of(map); ++strip) {
        if (room <= 0) {
          parts.push_back({input, std::min(across, cols - input), {}});
          room = columns;
        }
        parts.back().strips.push_back({&map, strip});
        room -= TurnedOutput::kStrip;
      }
    }
  }
}

void LinearMaps::add_gradients_of(Worker& worker, const Part& part) {
  const LinearBackward& one = *part.strips[0].map;
  const GradientForm form(worker.context.isa, *one.w);
  const bool any_matrix = std::any_of(part.strips.begin(), part.strips.end(),
                                      [](const Strip& strip) { return strip.map->w->taught; });
  const RowPanels panels(rows_of(one));
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t t = panels.first(panel), rows = panels.rows(panel);
    WeightView x;
    if (one.turned_x != nullptr) {
      x = one.turned_x->panel(panel, part.input, part.inputs);
    } else if (any_matrix) {
      worker.x.resize(form, rows, part.inputs);
      worker.x.put(worker.context, 0, part_of(one.x, t, rows, part.input, part.inputs));
      x = worker.x.panel(0, 0, part.inputs);
    }
    for (const Strip& strip : part.strips) {
      const LinearBackward& map = *strip.map;
      const int64_t first = strip.index * TurnedOutput::kStrip;
      const int64_t count = std::min(TurnedOutput::kStrip, outputs_of(map) - first);
      if (part.input == 0 && map.bias != nullptr && map.bias->taught) {
        add_rows(map.bias->gradient.data() + first, part_of(map.dy, t, rows, first, count));
      }
      if (!map.w->taught) continue;
      const MatrixView gradient = map.w->gradient_of(map.index);
      MatmulJob job;
      job.w = x;
      job.out = {gradient.row(first) + part.input, count, part.inputs, gradient.stride};
      job.end.add = true;
      job.rounded = in_bf16(*map.w);
      if (map.turned_dy != nullptr) {
        map.turned_dy->give(job, panel, strip.index);
      } else {
        worker.dy.resize(form, rows, count);
        worker.dy.put(worker.context, 0, part_of(map.dy, t, rows, first, count));
        worker.dy.give(job, 0, 0);
      }
      matmul(worker.context, {&job, 1});
    }
  }
}

}  // namespace drover
