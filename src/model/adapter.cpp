#include "model/adapter.h"

#include <algorithm>

#include "base/error.h"
#include "model/tensor_table.h"
#include "model/weights.h"

namespace drover {
namespace {

ExpertsView view_of(const AlignedArray<float>& values, int64_t matrices, int64_t rows,
                    int64_t cols) {
  const auto* data = reinterpret_cast<const std::byte*>(values.data());
  return {data, DType::kF32, matrices, rows, cols};
}

const float* floats(const WeightView& w, int64_t row) {
  return reinterpret_cast<const float*>(w.row(row));
}

}  // namespace

Adapter::Adapter(std::span<const LowRank> adapters) {
  std::map<std::string_view, std::vector<const LowRank*>> by_module;
  for (const LowRank& low : adapters) by_module[low.target.module].push_back(&low);
  for (const auto& [module, parts] : by_module) {
    const AdapterTarget& target = parts.front()->target;
    const int64_t E = target.matrices, cols = target.cols;
    int64_t rank = 0;
    for (const LowRank* low : parts) rank += low->rank;
    const auto room = [&](int64_t count) -> AlignedArray<float>& {
      bytes_ += count * static_cast<int64_t>(sizeof(float));
      return owned_.emplace_back(static_cast<size_t>(count));
    };

    AlignedArray<float>& a = room(E * rank * cols);
    float* to = a.data();
    for (int64_t e = 0; e < E; ++e) {
      for (const LowRank* low : parts) {
        to = std::copy_n(low->a.data() + e * low->rank * cols, low->rank * cols, to);
      }
    }
    const ExpertsView a_view = view_of(a, E, rank, cols);

    // Each tensor has its part of the rows.
    const int64_t rows = target.rows / static_cast<int64_t>(target.tensors.size());
    for (size_t tensor = 0; tensor < target.tensors.size(); ++tensor) {
      AlignedArray<float>& b = room(E * rows * rank);
      to = b.data();
      for (int64_t e = 0; e < E; ++e) {
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = e * target.rows + static_cast<int64_t>(tensor) * rows + r;
          for (const LowRank* low : parts) {
            for (int64_t k = 0; k < low->rank; ++k) {
              *to++ = low->scale * low->b[static_cast<size_t>(row * low->rank + k)];
            }
          }
        }
      }
      factors_[target.tensors[tensor]] = {a_view, view_of(b, E, rows, rank)};
    }
  }
}

const Adapter::Factors* Adapter::find(std::string_view tensor) const {
  const auto found = factors_.find(tensor);
  return found == factors_.end() ? nullptr : &found->second;
}

void Adapter::merge(const Factors& factors, int64_t index, int64_t first, int64_t count,
                    std::span<float> values) const {
  const WeightView a = factors.a.expert(index), b = factors.b.expert(index);
  for (int64_t r = 0; r < count; ++r) {
    float* row = values.data() + r * a.cols;
    const float* weight = floats(b, first + r);
    for (int64_t k = 0; k < a.rows; ++k) {
      const float* direction = floats(a, k);
      for (int64_t i = 0; i < a.cols; ++i) row[i] += weight[k] * direction[i];
    }
  }
}

void Adapter::bind(const Weights& weights) {
  size_t bound = 0;
  const auto tensor = [&](std::string_view name, const std::byte* data, DType type) {
    const Factors* factors = find(name);
    if (factors == nullptr || data == nullptr) return;
    ++bound;
    const int64_t bytes = factors->b.rows * row_bytes(type, factors->a.cols);
    for (int64_t e = 0; e < factors->a.experts; ++e) {
      maps_[data + e * bytes] = {factors->a.expert(e), factors->b.expert(e)};
    }
  };
  maps_.clear();
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& w = weights.layers[i];
    const auto part = [&](std::string_view name, const auto& view) {
      tensor(layer_tensor(static_cast<int64_t>(i), name), view.data, view.type);
    };
    const bool moe = static_cast<bool>(w.router);
    part("attn_q", w.wq);
    part("attn_k", w.wk);
    part("attn_v", w.wv);
    part("attn_output", w.wo);
    part(moe ? "ffn_gate_shexp" : "ffn_gate", w.gate);
    part(moe ? "ffn_up_shexp" : "ffn_up", w.up);
    part(moe ? "ffn_down_shexp" : "ffn_down", w.down);
    part("ffn_gate_exps", w.expert_gate);
    part("ffn_up_exps", w.expert_up);
    part("ffn_down_exps", w.expert_down);
  }
  tensor(kOutputTensor, weights.output.data, weights.output.type);
  DROVER_CHECK(bound == factors_.size());
}

void Adapter::add(Context& context, std::span<const MatmulJob> jobs,
                  AlignedArray<float>& scratch) const {
  if (maps_.empty()) return;
  struct Found {
    const MatmulJob* job;
    const Map* map;
    int64_t first;  // of A x in the scratch memory
    bool again;     // as that of the job before
  };
  std::vector<Found> found;
  int64_t size = 0;
  for (const MatmulJob& job : jobs) {
    const auto map = maps_.find(job.w.data);
    if (map == maps_.end()) continue;
    // Gate and up of an expert.
    if (!found.empty() && found.back().map->a.data == map->second.a.data &&
        found.back().job->x.data == job.x.data) {
      found.push_back({&job, &map->second, found.back().first, true});
      continue;
    }
    found.push_back({&job, &map->second, size, false});
    size += job.x.rows * map->second.a.rows;
  }
  if (found.empty()) return;
  scratch.reserve_discarding(static_cast<size_t>(size));
  std::vector<MatmulJob> inner, outer;
  for (const auto& [job, map, first, again] : found) {
    const MatrixView ax = {scratch.data() + first, job->x.rows, map->a.rows, map->a.rows};
    if (!again) inner.push_back({.x = job->x, .w = map->a, .out = ax});
    outer.push_back({.x = ax, .w = map->b, .out = job->out, .end = {.add = true}});
  }
  matmul(context, inner);
  matmul(context, outer);
}

Adapter read_adapter(std::span<const std::string> folders, const ModelConfig& config) {
  std::vector<LowRank> all;
  for (const std::string& folder : folders) {
    for (LowRank& low : read_peft(folder, config)) all.push_back(std::move(low));
  }
  return Adapter(all);
}

}  // namespace drover
