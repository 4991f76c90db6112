// The decoder forward and backward over a batch of examples: the loss, and its gradient in every
// taught parameter. The mathematics of model/decoder.h, with all activations kept; spec sections 2
// and 3.
//
// Holds activations of one batch. One thread at a time uses it; parameters and context must outlive
// it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/rope/rope.h"
#include "train/batch.h"
#include "train/linear.h"
#include "train/parameters.h"

namespace drover {

struct PassOptions {
  // The loss that keeps experts in use: for each MoE layer
  //   balance * E * sum over e of f[e] * P[e]
  // with f[e] the part of the batch's choices that fell on e (a constant for the gradient) and P[e]
  // the mean of softmax(router logits)[e]. Source: Fedus et al. 2021, arXiv 2101.03961.
  float balance = 0;
  // coefficient of the mean square of ln sum_e e^logit, which keeps router logits small. Source:
  // Zoph et al. 2022, arXiv 2202.08906.
  float router_z = 0;
};

struct PassReport {
  double loss = 0;      // sum over rows of weight * cross entropy
  double weight = 0;    // sum of weights
  double correct = 0;   // sum of weights of rows whose best token is the target
  double balance = 0;   // mean over MoE layers of E sum f P: 1 is even
  std::vector<int64_t> expert_tokens;  // [L, E]
};

class DecoderPass {
 public:
  DecoderPass(Context& context, Parameters& parameters, const PassOptions& options = {});

  // Added to router logits when experts are chosen and nowhere else, [L, E]; zeros at first.
  // Source: Wang et al. 2024, arXiv 2408.15664.
  std::span<float> selection_bias() { return selection_bias_; }

  // Activations, loss of every row, and the gradient of scale * (loss + auxiliary losses) with
  // respect to the last hidden states. seen: [patch rows, D], what stands in place of the
  // embeddings of batch.patch_rows; no data without pictures. The auxiliary losses count
  // batch.weight() times, so that they are means like the loss once scale is 1 / (all weights).
  PassReport forward(const TrainingBatch& batch, ConstMatrixView seen, float scale);

  // After forward() of the same batch: adds to the gradients of the taught parameters. dseen: as
  // seen, overwritten; not wanted if it has no data.
  void backward(const TrainingBatch& batch, MatrixView dseen);

  // Of the last forward(): the loss of each row, in nats, whatever its weight; rows of weight 0 are
  // not computed and say 0.
  std::span<const float> losses() const { return losses_; }

 private:
  // What of a layer the backward pass needs. T rows, S = T k slots of experts behind them.
  struct Kept {
    AlignedArray<float> h;        // [T, D], what comes in
    AlignedArray<float> normed;   // [T, D], of h
    AlignedArray<float> q, k, v;  // [T, H*d], [T, K*d]: as attention takes them
    AlignedArray<float> turned_q, turned_k;  // before their norm, where there is one
    AlignedArray<float> mixed;    // [T, H*d], attention's output
    AlignedArray<float> log_sums;  // [T, H]
    AlignedArray<float> middle;   // [T, D], h after attention
    AlignedArray<float> f;        // [T + S, D], normed middle, then its gated copies by expert
    AlignedArray<float> gate, up, inner;  // [T + S, F]
    AlignedArray<float> router;   // [T, E], logits
    std::vector<int64_t> chosen;  // [T, k], experts, ascending
    std::vector<int64_t> slots;   // [T, k], rows behind the T
    std::vector<int64_t> expert_first;  // [E + 1]
  };

  void fill_rotations(const TrainingBatch& batch);
  void embed(const TrainingBatch& batch, ConstMatrixView seen);
  void attention_forward(const TrainingBatch& batch, int64_t layer);
  void attention_backward(const TrainingBatch& batch, int64_t layer);
  void route(int64_t layer);
  void route_backward(int64_t layer);
  void feed_forward(int64_t layer);
  void feed_backward(int64_t layer);
  void read_out(const TrainingBatch& batch, float scale);

  Context& context_;
  Parameters& parameters_;
  const ModelConfig& config_;
  const PassOptions options_;
  LinearMaps maps_;
  std::vector<float> selection_bias_;

  int64_t tokens_ = 0;  // T
  float scale_ = 1;
  double weight_ = 0;
  RopeTable rope_in_chunk_, rope_absolute_;
  std::vector<Kept> kept_;
  std::vector<float> losses_;
  PassReport report_;
  AlignedArray<float> h_;   // [T, D], residual stream
  AlignedArray<float> dh_;  // [T, D], its gradient
  AlignedArray<float> out_, dq_, dk_, dv_, dmixed_, dnormed_, df_, dgate_, dup_, drouter_;
};

}  // namespace drover
