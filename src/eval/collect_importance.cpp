#include "eval/collect_importance.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/tensor_table.h"

namespace drover {

ImportanceCollector::ImportanceCollector(Context& context, const Model& model) : context_(context) {
  const auto add = [&](const std::string& name, const ExpertsView& maps) {
    if (!maps) return;
    InputStatistics& statistics = importance_.maps[name];
    statistics.cols = maps.cols;
    statistics.square_sums.resize(static_cast<size_t>(maps.experts * maps.cols));
    statistics.counts.resize(static_cast<size_t>(maps.experts));
    for (int64_t e = 0; e < maps.experts; ++e) slots_[maps.expert(e).data] = {&statistics, e};
  };
  const auto add_map = [&](const std::string& name, const WeightView& w) {
    add(name, {w.data, w.type, 1, w.rows, w.cols});
  };
  const ModelConfig& config = model.config();
  const Weights& weights = model.weights();
  for (int64_t i = 0; i < config.layer_count(); ++i) {
    const LayerWeights& w = weights.layers[i];
    const std::string shared = config.layers[i].moe ? "_shexp" : "";
    add_map(layer_tensor(i, "attn_q"), w.wq);
    add_map(layer_tensor(i, "attn_k"), w.wk);
    add_map(layer_tensor(i, "attn_v"), w.wv);
    add_map(layer_tensor(i, "attn_output"), w.wo);
    add_map(layer_tensor(i, "ffn_gate" + shared), w.gate);
    add_map(layer_tensor(i, "ffn_up" + shared), w.up);
    add_map(layer_tensor(i, "ffn_down" + shared), w.down);
    add_map(layer_tensor(i, "ffn_gate_inp"), w.router);
    add(layer_tensor(i, "ffn_gate_exps"), w.expert_gate);
    add(layer_tensor(i, "ffn_up_exps"), w.expert_up);
    add(layer_tensor(i, "ffn_down_exps"), w.expert_down);
  }
  add_map(config.tied_embeddings ? "token_embd.weight" : "output.weight", weights.output);
}

void ImportanceCollector::see(WeightView w, ConstMatrixView x) {
  if (x.rows == 0) return;
  const auto slot = slots_.find(w.data);
  DROVER_CHECK(slot != slots_.end());
  InputStatistics& statistics = *slot->second.statistics;
  double* sums = statistics.square_sums.data() + slot->second.matrix * statistics.cols;
  constexpr int64_t kColumns = 256;  // of a task: 1 kB of every row
  context_.threads.run((x.cols + kColumns - 1) / kColumns, [&](int64_t task, int) {
    const int64_t first = task * kColumns, end = std::min(first + kColumns, x.cols);
    for (int64_t t = 0; t < x.rows; ++t) {
      const float* row = x.row(t);
      for (int64_t i = first; i < end; ++i) sums[i] += static_cast<double>(row[i]) * row[i];
    }
  });
  statistics.counts[slot->second.matrix] += static_cast<double>(x.rows);
}

Importance ImportanceCollector::result() const {
  Importance out = importance_;
  for (auto entry = out.maps.begin(); entry != out.maps.end();) {
    const auto& [name, statistics] = *entry;
    for (const double sum : statistics.square_sums) {
      if (!std::isfinite(static_cast<float>(sum))) {
        throw_error(ErrorKind::kBadData, "{}: expected finite inputs, got {}", name, sum);
      }
    }
    const bool saw = std::any_of(statistics.counts.begin(), statistics.counts.end(),
                                 [](double count) { return count > 0; });
    entry = saw ? std::next(entry) : out.maps.erase(entry);
  }
  return out;
}

}  // namespace drover
