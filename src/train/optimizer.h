// How gradients become steps: Muon for the matrices of the hidden layers, AdamW for the rest, or
// AdamW for all.
//
// An Optimizer owns its averages and changes the values of the parameters it was given, which must
// outlive it. One thread at a time uses it. Results are the same bits on any number of threads.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "train/orthogonalizer.h"
#include "train/parameters.h"

namespace drover {

// Decay is decoupled, and spares vectors: norms, biases, the class embedding.
//   value *= 1 - rate * decay;  value -= rate * m / (sqrt(v) + epsilon)
// with m, v the averages of gradient and squared gradient, corrected for their start at zero.
// Source: Loshchilov & Hutter 2019, arXiv 1711.05101.
struct AdamWOptions {
  double rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.95;
  double decay = 0.1;
  double epsilon = 1e-8;
};

// A matrix moves by the orthogonal matrix that is nearest to its momentum:
//   momentum = momentum * m + gradient;  value *= 1 - rate * decay
//   value -= rate * scale * orthogonal(gradient + momentum * m)    (orthogonalizer.h)
// Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
struct MuonOptions {
  double rate = 0.02;
  double momentum = 0.95;
  double decay = 0;
  enum class Scale {
    kShape,  // sqrt(max(1, rows / cols)): a step moves every output alike
    kRms,    // 0.2 sqrt(max(rows, cols)): entries move as AdamW's do, so its rates serve.
             // Source: Liu et al. 2025, arXiv 2502.16982.
  };
  Scale scale = Scale::kShape;
};

struct OptimizerOptions {
  std::optional<MuonOptions> muon;  // without: AdamW for matrices too
  AdamWOptions adamw;
  double clip = 1.0;  // the longest gradient of all parameters together that is taken as it is
};

// Floats that somebody else owns, by name.
struct NamedFloats {
  std::string name;
  std::span<float> values;
};

class Optimizer {
 public:
  // Frozen ones among the parameters are left out. precision: of Muon's products.
  Optimizer(Context& context, std::span<Parameter* const> parameters,
            const OptimizerOptions& options, Precision precision);
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // The Euclidean length of all gradients together.
  double gradient_norm();

  // One step on gradients times gradient_scale, at rate_scale times the rates.
  void update(double rate_scale, double gradient_scale);

  // Steps done, which AdamW's averages are corrected by.
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  // What it keeps: "blk.0.attn_q.weight: momentum". Together with steps(), all of its memory.
  std::vector<NamedFloats> state();

 private:
  struct Kept {
    Parameter* parameter = nullptr;
    bool muon = false;
    AlignedArray<float> first;   // AdamW's m, or Muon's momentum
    AlignedArray<float> second;  // AdamW's v
  };

  void adamw(Kept& kept, double rate_scale, double gradient_scale);
  struct MuonScratch {  // of a thread
    MuonScratch(Isa isa, Precision precision) : orthogonalizer(isa, precision) {}
    Orthogonalizer orthogonalizer;
    AlignedArray<float> move;
  };
  void muon(double rate_scale, double gradient_scale);
  void muon(Kept& kept, int64_t matrix, double rate_scale, double gradient_scale,
            MuonScratch& scratch);

  Context& context_;
  const OptimizerOptions options_;
  std::deque<MuonScratch> muons_;
  std::vector<Kept> kept_;
  int64_t steps_ = 0;
};

// What gradients of this length are multiplied by so that they are no longer than `limit`; 1 where
// the limit is 0.
double clip_scale(double norm, double limit);

}  // namespace drover
