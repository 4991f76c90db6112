#include "train/linear.h"

#include <algorithm>

#include "base/error.h"
#include "base/huge_pages.h"
#include "kernels/transpose/transpose.h"

namespace drover {
namespace {

bool same(ConstMatrixView a, ConstMatrixView b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride;
}

bool in_bf16(const Parameter& w) { return w.working.size() > 0; }

// bias += sum over rows of dy, each component in order of row.
void add_rows(Context& context, float* sum, ConstMatrixView dy) {
  constexpr int64_t kColumns = 64;
  context.threads.run((dy.cols + kColumns - 1) / kColumns, [&](int64_t task, int) {
    const int64_t first = task * kColumns, end = std::min(dy.cols, first + kColumns);
    for (int64_t t = 0; t < dy.rows; ++t) {
      const float* row = dy.row(t);
      for (int64_t i = first; i < end; ++i) sum[i] += row[i];
    }
  });
}

}  // namespace

void LinearMaps::forward(std::span<const LinearForward> maps) {
  std::vector<MatmulJob> jobs;
  for (const LinearForward& map : maps) {
    if (map.x.rows == 0) continue;
    jobs.push_back({.x = map.x,
                    .w = map.w->view(map.index),
                    .out = map.y,
                    .end = {.bias = map.bias == nullptr ? nullptr : map.bias->value.data(),
                            .add = map.add},
                    .rounded = in_bf16(*map.w)});
  }
  matmul(context_, jobs);
}

void LinearMaps::backward(std::span<const LinearBackward> maps) {
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

  first_.clear();
  second_.clear();
  std::vector<MatmulJob> jobs;
  for (const LinearBackward& map : maps) {
    if (map.x.rows == 0) continue;
    if (map.bias != nullptr && map.bias->taught) {
      add_rows(context_, map.bias->gradient.data(), map.dy);
    }
    if (!map.w->taught) continue;
    const bool rounds = in_bf16(*map.w);
    const DType type = rounds ? DType::kBF16 : DType::kF32;
    const Transposed& dy = first_factor(map.dy, rounds);
    const Transposed& x = second_factor(map.x, rounds);
    const int64_t T = on_lines(map.x.rows);  // with zeros at the end
    jobs.push_back({.x = {reinterpret_cast<const float*>(dy.plain.data()), map.dy.cols, T, T},
                    .w = {x.plain.data(), type, map.x.cols, T},
                    .out = map.w->gradient_of(map.index),
                    .end = {.add = true},
                    .rounded = rounds});
    if (rounds && takes_rounded(context_.isa, type)) jobs.back().x16 = &dy.rounded;
  }
  matmul(context_, jobs);
}

std::pair<LinearMaps::Transposed*, bool> LinearMaps::Shelf::find(ConstMatrixView of,
                                                                 bool in_bf16) {
  for (size_t i = 0; i < used_; ++i) {
    if (same(all_[i].of, of) && all_[i].in_bf16 == in_bf16) return {&all_[i], true};
  }
  if (used_ == all_.size()) all_.emplace_back();
  Transposed& free = all_[used_++];
  free.of = of;
  free.in_bf16 = in_bf16;
  return {&free, false};
}

const LinearMaps::Transposed& LinearMaps::first_factor(ConstMatrixView of, bool in_bf16) {
  const auto [factor, is_there] = first_.find(of, in_bf16);
  if (is_there) return *factor;
  const int64_t T = on_lines(of.rows);
  if (in_bf16 && takes_rounded(context_.isa, DType::kBF16)) {
    transpose(context_, of, factor->rounded, T);
  } else {
    reserve_huge(factor->plain, static_cast<size_t>(of.cols * T) * sizeof(float));
    transpose(context_, of, DType::kF32, factor->plain.data(), T);
  }
  return *factor;
}

const LinearMaps::Transposed& LinearMaps::second_factor(ConstMatrixView of, bool in_bf16) {
  const auto [factor, is_there] = second_.find(of, in_bf16);
  if (is_there) return *factor;
  const DType type = in_bf16 ? DType::kBF16 : DType::kF32;
  const int64_t T = on_lines(of.rows);
  reserve_huge(factor->plain, static_cast<size_t>(of.cols * row_bytes(type, T)));
  transpose(context_, of, type, factor->plain.data(), T);
  return *factor;
}

}  // namespace drover
