#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/huge_pages.h"
#include "kernels/adamw/adamw.h"

namespace drover {
namespace {

// Sums are made of the sums of so many elements, in order, so that they do not know of threads.
constexpr int64_t kPiece = 16384;

}  // namespace

double clip_scale(double norm, double limit) {
  return limit > 0 && norm > limit ? limit / norm : 1.0;
}

Optimizer::Optimizer(Context& context, std::span<Parameter* const> parameters,
                     const OptimizerOptions& options, Precision precision)
    : context_(context), options_(options) {
  for (int worker = 0; options_.muon && worker < context_.threads.size(); ++worker) {
    muons_.emplace_back(context_.isa, precision);
  }
  const auto zeros = [](int64_t count) {
    AlignedArray<float> out;
    reserve_huge(out, static_cast<size_t>(count));
    std::fill(out.data(), out.data() + count, 0.0f);
    return out;
  };
  for (Parameter* parameter : parameters) {
    if (!parameter->taught) continue;
    Kept kept;
    kept.parameter = parameter;
    kept.muon = options_.muon && parameter->kind == Parameter::Kind::kMatrix;
    kept.first = zeros(parameter->size());
    if (!kept.muon) kept.second = zeros(parameter->size());
    kept_.push_back(std::move(kept));
  }
}

std::vector<NamedFloats> Optimizer::state() {
  std::vector<NamedFloats> out;
  for (Kept& kept : kept_) {
    const std::string& name = kept.parameter->name;
    out.push_back({name + (kept.muon ? ": momentum" : ": average"), kept.first.span()});
    if (!kept.muon) out.push_back({name + ": average of squares", kept.second.span()});
  }
  return out;
}

double Optimizer::gradient_norm() {
  struct Piece {
    const float* first;
    int64_t count;
    double sum;
  };
  std::vector<Piece> all;
  for (const Kept& kept : kept_) {
    const int64_t size = kept.parameter->size();
    for (int64_t i = 0; i < size; i += kPiece) {
      all.push_back({kept.parameter->gradient.data() + i, std::min(kPiece, size - i), 0});
    }
  }
  context_.threads.run(static_cast<int64_t>(all.size()), [&](int64_t i, int) {
    Piece& piece = all[static_cast<size_t>(i)];
    piece.sum = sum_of_squares(context_.isa, piece.first, piece.count);
  });
  double sum = 0;
  for (const Piece& piece : all) sum += piece.sum;
  return std::sqrt(sum);
}

void Optimizer::update(double rate_scale, double gradient_scale) {
  ++steps_;
  for (Kept& kept : kept_) {
    if (!kept.muon) adamw(kept, rate_scale, gradient_scale);
  }
  if (options_.muon) muon(rate_scale, gradient_scale);
}

void Optimizer::adamw(Kept& kept, double rate_scale, double gradient_scale) {
  const AdamWOptions& o = options_.adamw;
  const double rate = o.rate * rate_scale;
  const double decay = kept.parameter->kind == Parameter::Kind::kVector ? 0 : o.decay;
  const double steps = static_cast<double>(steps_);
  const AdamWStep step = {
      .scale = static_cast<float>(gradient_scale),
      .beta1 = static_cast<float>(o.beta1),
      .other1 = static_cast<float>(1 - o.beta1),
      .beta2 = static_cast<float>(o.beta2),
      .other2 = static_cast<float>(1 - o.beta2),
      .keep = static_cast<float>(1 - rate * decay),
      .step = static_cast<float>(rate / (1 - std::pow(o.beta1, steps))),
      .root = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, steps))),
      .epsilon = static_cast<float>(o.epsilon),
  };
  Parameter& p = *kept.parameter;
  drover::adamw(context_, step, p.size(), p.gradient.data(), p.value.data(), kept.first.data(),
                kept.second.data());
}

// Matrices of all parameters are one list of tasks.
void Optimizer::muon(double rate_scale, double gradient_scale) {
  struct Task {
    Kept* kept;
    int64_t matrix;
  };
  std::vector<Task> tasks;
  for (Kept& kept : kept_) {
    for (int64_t i = 0; kept.muon && i < kept.parameter->matrices; ++i) tasks.push_back({&kept, i});
  }
  // The largest first, so that threads end together.
  const auto size = [](const Task& task) {
    return task.kept->parameter->rows * task.kept->parameter->cols;
  };
  std::stable_sort(tasks.begin(), tasks.end(),
                   [&](const Task& a, const Task& b) { return size(a) > size(b); });
  const auto count = static_cast<int64_t>(tasks.size());
  context_.threads.run(count, [&](int64_t i, int worker) {
    const Task& task = tasks[static_cast<size_t>(i)];
    muon(*task.kept, task.matrix, rate_scale, gradient_scale, muons_[static_cast<size_t>(worker)]);
  });
}

void Optimizer::muon(Kept& kept, int64_t matrix, double rate_scale, double gradient_scale,
                     MuonScratch& scratch) {
  const MuonOptions& o = *options_.muon;
  Parameter& p = *kept.parameter;
  const double rate = o.rate * rate_scale;
  const double rows = static_cast<double>(p.rows), cols = static_cast<double>(p.cols);
  const double shape = o.scale == MuonOptions::Scale::kShape
                           ? std::sqrt(std::max(1.0, rows / cols))
                           : 0.2 * std::sqrt(std::max(rows, cols));
  const float momentum = static_cast<float>(o.momentum), scale = static_cast<float>(gradient_scale);
  const float keep = static_cast<float>(1 - rate * o.decay);
  const float step = static_cast<float>(rate * shape);
  const int64_t size = p.rows * p.cols;
  reserve_huge(scratch.move, static_cast<size_t>(size));
  float* const move = scratch.move.data();
  const float* gradient = p.gradient.data() + matrix * size;
  float* m = kept.first.data() + matrix * size;
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradient[i] * scale;
    m[i] = momentum * m[i] + g;
    move[i] = g + momentum * m[i];
  }
  scratch.orthogonalizer.run(move, p.rows, p.cols);
  float* value = p.matrix(matrix);
  for (int64_t i = 0; i < size; ++i) value[i] = keep * value[i] - step * move[i];
}

}  // namespace drover
