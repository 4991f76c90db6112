// Low-rank adapters for teaching: of each adapted matrix W only the factors of s B A are taught,
// and passes see W + s B A in place of W and know nothing of it.
//
// So an adapter costs the memory of a gradient and of a copy of every matrix that it adapts: it is
// for models that fit so, and its worth is a small file and a base that others share, not memory.
//
//   step:  clear_gradients, passes forward and backward, backward(), the optimizer on factors(),
//          apply()
//
// A Lora owns factors and copies and changes the Parameters, which must outlive it. One thread at a
// time uses it.
// Source: Hu et al. 2021, arXiv 2106.09685.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "model/peft.h"
#include "train/parameters.h"

namespace drover {

struct LoraOptions {
  int64_t rank = 8;
  double alpha = 16;  // s = alpha / rank
  uint64_t seed = 0;
  bool attention = true;  // wq, wk, wv, wo
  bool shared = true;     // gate, up, down of dense networks and of shared experts
  bool experts = true;    // of every expert; gate and up have one A, as one parameter elsewhere
};

class Lora {
 public:
  // Freezes all parameters but the matrices that it adapts, whose gradients it needs. A is even in
  // +-1 / sqrt(cols) and B is zero, so that teaching begins at the model itself. kUsage for a rank
  // below 1, and where the model has nothing that a chosen group could mean.
  Lora(Parameters& parameters, const LoraOptions& options);
  Lora(const Lora&) = delete;
  Lora& operator=(const Lora&) = delete;

  // What optimizers change: A and B of each target in turn, "layers.0.self_attn.q_proj.lora_A".
  // Neither has copies to multiply with.
  std::deque<Parameter>& factors() { return factors_; }

  // Sets the values of the adapted matrices to W + s B A and refreshes their copies: for the
  // next pass, and for whoever writes the merged model (train/write_model.h).
  void apply(Context& context);

  // Of the parameters and of the factors.
  void clear_gradients(Context& context);

  // dB += s dW A^T,  dA += s B^T dW,  with dW the gradients that passes have left in the
  // parameters. The same bits on any number of threads.
  void backward(Context& context);

  // The adapter as it stands, for write_peft().
  std::vector<LowRank> adapters() const;
  PeftNotes notes() const;

 private:
  struct Target {
    AdapterTarget what;
    std::vector<Parameter*> weights;        // one, or gate and up
    std::vector<AlignedArray<float>> base;  // W of each
    Parameter* a = nullptr;                 // [matrices, rank, cols]
    Parameter* b = nullptr;                 // [matrices, rows of all weights, rank]
  };

  Parameters& parameters_;
  std::vector<Parameter*> adapted_;  // of all targets
  const LoraOptions options_;
  const float scale_;
  std::deque<Parameter> factors_;
  std::vector<Target> targets_;
  AlignedArray<float> products_;  // scratch
};

}  // namespace drover
