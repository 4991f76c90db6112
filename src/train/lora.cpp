#include "train/lora.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/matmul/matmul.h"
#include "train/random.h"

namespace drover {
namespace {

bool wanted(const AdapterTarget& target, const LoraOptions& options) {
  const std::string_view name = target.module;
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has(".self_attn.")) return options.attention;
  if (target.has_experts()) return options.experts;
  return options.shared && (has(".gate_proj") || has(".up_proj") || has(".down_proj"));
}

// y += weight * x
void add_scaled(float* y, const float* x, float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += weight * x[i];
}

}  // namespace

Lora::Lora(Parameters& parameters, const LoraOptions& options)
    : parameters_(parameters),
      options_(options),
      scale_(static_cast<float>(options.alpha /
                                static_cast<double>(std::max<int64_t>(1, options.rank)))) {
  if (options.rank < 1 || options.rank > 4096) {
    throw_error(ErrorKind::kUsage, "rank: expected 1 to 4096, got {}", options.rank);
  }
  const ModelConfig& config = parameters.config();
  const bool moe = std::any_of(config.layers.begin(), config.layers.end(),
                               [](const LayerConfig& layer) { return layer.moe; });
  if (options.experts && !moe) {
    throw_error(ErrorKind::kUsage, "adapter: expected experts to adapt, got a model without any");
  }
  if (!options.attention && !options.shared && !options.experts) {
    throw_error(ErrorKind::kUsage, "adapter: expected something to adapt, got nothing");
  }
  for (Parameter& parameter : parameters.all()) parameters.freeze(parameter);
  for (const AdapterTarget& what : adapter_targets(config)) {
    if (!wanted(what, options)) continue;
    Target& target = targets_.emplace_back();
    target.what = what;
    for (const std::string& name : what.tensors) {
      Parameter* weight = parameters.find(name);
      DROVER_CHECK(weight != nullptr && weight->matrices == what.matrices);
      parameters.freeze(*weight, false);
      AlignedArray<float>& base = target.base.emplace_back(static_cast<size_t>(weight->size()));
      std::copy_n(weight->value.data(), weight->size(), base.data());
      target.weights.push_back(weight);
      adapted_.push_back(weight);
    }
    const auto factor = [&](std::string_view suffix, int64_t rows, int64_t cols) {
      Parameter& out = factors_.emplace_back();
      out.name = what.module + std::string(suffix);
      out.matrices = what.matrices;
      out.rows = rows;
      out.cols = cols;
      out.value = AlignedArray<float>(static_cast<size_t>(out.size()));
      out.gradient = AlignedArray<float>(static_cast<size_t>(out.size()));
      std::fill_n(out.value.data(), out.size(), 0.0f);
      std::fill_n(out.gradient.data(), out.size(), 0.0f);
      return &out;
    };
    target.a = factor(".lora_A", options.rank, what.cols);
    target.b = factor(".lora_B", what.rows, options.rank);
    Random random(options.seed, targets_.size());
    const double most = 1 / std::sqrt(static_cast<double>(what.cols));
    for (int64_t i = 0; i < target.a->size(); ++i) {
      target.a->value[static_cast<size_t>(i)] =
          static_cast<float>(most * (2 * random.uniform() - 1));
    }
  }
}

void Lora::apply(Context& context) {
  const int64_t rank = options_.rank;
  for (Target& target : targets_) {
    const int64_t cols = target.what.cols;
    int64_t first = 0;  // row of B
    for (size_t i = 0; i < target.weights.size(); ++i) {
      Parameter& weight = *target.weights[i];
      context.threads.run(weight.matrices * weight.rows, [&](int64_t row, int) {
        const int64_t e = row / weight.rows, r = row % weight.rows;
        const float* b = target.b->matrix(e) + (first + r) * rank;
        const float* a = target.a->matrix(e);
        float* value = weight.value.data() + row * cols;
        std::copy_n(target.base[i].data() + row * cols, cols, value);
        for (int64_t k = 0; k < rank; ++k) add_scaled(value, a + k * cols, scale_ * b[k], cols);
      });
      first += weight.rows;
    }
  }
  parameters_.refresh(context, adapted_);
}

void Lora::clear_gradients(Context& context) {
  parameters_.clear_gradients(context);
  for (Parameter& factor : factors_) {
    std::fill_n(factor.gradient.data(), factor.size(), 0.0f);
  }
}

void Lora::backward(Context& context) {
  const int64_t rank = options_.rank;
  for (Target& target : targets_) {
    const int64_t cols = target.what.cols, matrices = target.what.matrices;
    int64_t first = 0;
    for (Parameter* weight : target.weights) {
      const int64_t rows = weight->rows;
      // dW A^T, of all matrices at once.
      products_.reserve_discarding(static_cast<size_t>(matrices * rows * rank));
      std::vector<MatmulJob> jobs;
      for (int64_t e = 0; e < matrices; ++e) {
        const auto* a = reinterpret_cast<const std::byte*>(target.a->matrix(e));
        jobs.push_back({.x = weight->gradient_of(e),
                        .w = {a, DType::kF32, rank, cols},
                        .out = {products_.data() + e * rows * rank, rows, rank, rank}});
      }
      matmul(context, jobs);
      for (int64_t e = 0; e < matrices; ++e) {
        float* db = target.b->gradient.data() + (e * target.what.rows + first) * rank;
        add_scaled(db, products_.data() + e * rows * rank, scale_, rows * rank);
      }
      // B^T dW: a piece of columns sums over all rows in order.
      constexpr int64_t kPiece = 256;
      const int64_t pieces = (cols + kPiece - 1) / kPiece;
      context.threads.run(matrices * pieces, [&](int64_t task, int) {
        const int64_t e = task / pieces, column = task % pieces * kPiece;
        const int64_t n = std::min(kPiece, cols - column);
        const MatrixView dw = weight->gradient_of(e);
        const float* b = target.b->matrix(e) + first * rank;
        float* da = target.a->gradient.data() + e * rank * cols + column;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < rank; ++k) {
            add_scaled(da + k * cols, dw.row(r) + column, scale_ * b[r * rank + k], n);
          }
        }
      });
      first += rows;
    }
  }
}

std::vector<LowRank> Lora::adapters() const {
  std::vector<LowRank> out;
  for (const Target& target : targets_) {
    LowRank low{target.what, options_.rank, scale_, {}, {}};
    low.a.assign(target.a->value.data(), target.a->value.data() + target.a->size());
    low.b.assign(target.b->value.data(), target.b->value.data() + target.b->size());
    out.push_back(std::move(low));
  }
  return out;
}

PeftNotes Lora::notes() const {
  return {.rank = options_.rank,
          .alpha = options_.alpha,
          .base_model = {},
          .multimodal = parameters_.vision_config().has_value()};
}

}  // namespace drover
