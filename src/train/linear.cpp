#include "train/linear.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

// The most columns of dy that a thread takes at a time, of one map and in all, so that dW of them
// stays in its second-level cache; and the fewest, since x is turned again for each part.
constexpr int64_t kMostStrip = 512, kMostOutputs = 1024, kLeastOutputs = 96;

int64_t pieces(int64_t total, int64_t each) { return (total + each - 1) / each; }

int64_t outputs_of(const LinearBackward& map) { return map.w->rows; }
int64_t rows_of(const LinearBackward& map) {
  return map.turned_x != nullptr ? map.turned_x->panels().rows() : map.x.rows;
}

bool read_the_same(const LinearBackward& a, const LinearBackward& b) {
  return a.x.data == b.x.data && a.x.rows == b.x.rows && a.x.cols == b.x.cols &&
         a.x.stride == b.x.stride && a.turned_x == b.turned_x && a.w->rounds() == b.w->rounds();
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

// y = W x for the rows of x.
MatmulJob product(ConstMatrixView x, WeightView w, bool rounded, MatrixView y) {
  MatmulJob job;
  job.x = x, job.w = w, job.out = y, job.rounded = rounded;
  return job;
}

// The same on the matrix unit, where x and the packed weights change places.
MatmulJob product(ConstMatrixView x, const RoundedRows& w, MatrixView y) {
  DROVER_CHECK(x.stride == x.cols);
  MatmulJob job;
  job.x = {nullptr, w.rows(), w.cols(), w.cols()};
  job.x16 = &w;
  job.w = {reinterpret_cast<const std::byte*>(x.data), DType::kF32, x.rows, x.cols};
  job.out = y, job.rounded = true, job.turned = true;
  return job;
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
    const Parameter& w = *map.w;
    const auto index = static_cast<size_t>(map.index);
    MatmulJob& job =
        jobs.emplace_back(w.packed.empty() ? product(map.x, w.view(map.index), w.rounds(), map.y)
                                           : product(map.x, w.packed[index], map.y));
    job.end = {.bias = map.bias == nullptr ? nullptr : map.bias->value.data(), .add = map.add};
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
    const Parameter& w = *map.w;
    const auto index = static_cast<size_t>(map.index);
    MatmulJob& job = passes[before].emplace_back(
        w.packed.empty() ? product(map.dy, w.transposed_view(map.index), w.rounds(), map.dx)
                         : product(map.dy, w.packed_transposed[index], map.dx));
    job.end.add = map.add;
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
  for (int64_t input = 0; input < maps[0].w->cols; input += TurnedInput::kStrip) {
    int64_t room = 0;  // in the last part
    for (const LinearBackward& map : maps) {
      if (!has_gradient(map)) continue;
      const int64_t rows = map.w->rows;
      const int64_t down = on_lines(pieces(rows, pieces(rows, std::min(columns, kMostStrip))));
      for (int64_t first = 0; first < rows; first += down) {
        const int64_t count = std::min(down, rows - first);
        if (room < count) {
          parts.push_back({input, {}});
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
  const GradientForm form(worker.context.isa, *one.w);
  const bool any_matrix = std::any_of(part.strips.begin(), part.strips.end(),
                                      [](const Strip& strip) { return strip.map->w->taught; });
  const int64_t inputs = std::min(TurnedInput::kStrip, one.w->cols - part.input);
  const RowPanels panels(rows_of(one));
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t t = panels.first(panel), rows = panels.rows(panel);
    if (one.turned_x == nullptr && any_matrix) {
      worker.x.resize(form, rows, inputs);
      worker.x.put(worker.context, 0, part_of(one.x, t, rows, part.input, inputs));
    }
    for (const Strip& strip : part.strips) {
      const LinearBackward& map = *strip.map;
      if (part.input == 0 && map.bias != nullptr && map.bias->taught) {
        add_rows(map.bias->gradient.data() + strip.first,
                 part_of(map.dy, t, rows, strip.first, strip.count));
      }
      if (!map.w->taught) continue;
      const MatrixView dw = map.w->gradient_of(map.index);
      const MatrixView out{dw.row(strip.first) + part.input, strip.count, inputs, dw.stride};
      if (map.turned_dy != nullptr) {
        add_product(worker.context, *map.turned_dy, *map.turned_x, panel, strip.first, strip.count,
                    part.input / TurnedInput::kStrip, out);
      } else {
        worker.dy.resize(form, rows, strip.count);
        worker.dy.put(worker.context, 0, part_of(map.dy, t, rows, strip.first, strip.count));
        add_product(worker.context, worker.dy, worker.x, 0, 0, strip.count, 0, out);
      }
    }
  }
}

}  // namespace drover
