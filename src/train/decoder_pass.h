// The decoder forward and backward over a batch of examples: the loss, and its gradient in every
// taught parameter. The mathematics of model/decoder.h, with all activations kept; spec sections 2
// and 3.
//
// Holds activations of one batch. One thread at a time uses it; parameters and context must outlive
// it.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/packed_attention/packed_attention.h"
#include "kernels/rope/rope.h"
#include "tensor/float16.h"
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
  double loss = 0;                     // sum over rows of weight * cross entropy
  double weight = 0;                   // sum of weights
  double correct = 0;                  // sum of weights of rows whose best token is the target
  double balance = 0;                  // mean over MoE layers of E sum f P: 1 is even
  std::vector<int64_t> expert_tokens;  // [L, E]
};

class DecoderPass {
 public:
  DecoderPass(Context& context, Parameters& parameters, const PassOptions& options = {});

  // Added to router logits when experts are chosen and nowhere else, [L, E]; zeros at first.
  // Source: Wang et al. 2024, arXiv 2408.15664.
  std::span<float> selection_bias() { return selection_bias_; }

  // Activations, the loss, and the beginning of the gradient of scale * (loss + auxiliary losses):
  // that of the output matrix and the final norm. With scale 0 only the loss is wanted, no gradient
  // is touched, and backward() may not follow.
  // seen: [patch rows, D], what stands in place of the embeddings of batch.patch_rows; no data
  // without pictures. Auxiliary losses count batch.weight() times, so that they are means like the
  // loss once scale is 1 / (all weights).
  PassReport forward(const TrainingBatch& batch, ConstMatrixView seen, float scale);

  // After forward() of the same batch: adds to the gradients of the taught parameters. dseen: as
  // seen, overwritten; not wanted if it has no data.
  void backward(const TrainingBatch& batch, MatrixView dseen);

  // Of the last forward(): the loss of each row, in nats, whatever its weight; rows of weight 0 are
  // not computed and say 0.
  std::span<const float> losses() const { return losses_; }
  // The same way: 1 where the best token of a row is its target, else 0.
  std::span<const uint8_t> hits() const { return hits_; }

 private:
  // What of a layer the backward pass needs. T rows; S = T k slots of experts behind them.
  struct Kept {
    AlignedArray<float> h;                     // [T, D], what comes in
    AlignedArray<float> normed;                // [T, D], of h
    AlignedArray<float> q, k, v;               // [T, H*d], [T, K*d]: as attention takes them
    AlignedArray<float> inverse_q, inverse_k;  // [T, H], [T, K]: what their norm multiplied by
    AlignedArray<float> mixed;                 // [T, H*d], attention's output
    AlignedArray<float> log_sums;              // [T, H]
    AlignedArray<float> middle;                // [T, D], h after attention
    AlignedArray<float> f;                     // [T, D], normed middle
    AlignedArray<bf16> gate, up;               // [T + S, F]; none in f32, where they are made again
    AlignedArray<float> router;                // [T, E], logits
    std::vector<int64_t> chosen;               // [T, k], experts, ascending
    std::vector<int64_t> slots;                // [T, k], which of the S
    std::vector<int64_t> choices;              // [S], which of the T k
    std::vector<int64_t> first;                // [E + 1], first slot of each expert
  };

  // What a thread needs to do rows by itself: some that go through several operations stay in its
  // cache.
  struct Worker {
    explicit Worker(Isa isa) : context(/*threads=*/1, isa), maps(context) {}
    Context context;
    LinearMaps maps;
    AlignedArray<float> f, dout;          // [rows, D], of an expert
    AlignedArray<float> gate, up, inner;  // [rows, F]
    AlignedArray<float> logits;           // [rows, V]
  };
  // What the gradients of a network's three maps are made of.
  struct Turned {
    TurnedInput f, inner;
    TurnedOutput dgate, dup, dout;
    void resize(GradientForm form, int64_t rows, int64_t hidden, int64_t width);
  };
  // Rows [first, first + rows) of T + S, and the network that they go through: the shared one (or
  // the dense one), or an expert.
  struct Share {
    int64_t first, rows;
    Parameter *gate, *up, *down;
    int64_t index;
    Turned* turned;
  };
  std::vector<Share> shares(int64_t layer);
  // Some rows of a share.
  struct Piece {
    const Share* share;
    int64_t first, rows;  // of the share's
  };

  // body(first, rows, worker) for panels of [0, rows), which threads share.
  template <typename Body>
  void in_panels(int64_t rows, const Body& body);

  // body(piece, worker) for pieces of their rows, none in two panels of dW.
  template <typename Body>
  void in_shares(std::span<const Share> shares, const Body& body);

  void fill_rotations(const TrainingBatch& batch);
  void embed(const TrainingBatch& batch, ConstMatrixView seen);
  void embed_backward(const TrainingBatch& batch, MatrixView dseen);
  PackedAttention how_to_attend(const TrainingBatch& batch, const LayerConfig& layer) const;
  void attention_block(const TrainingBatch& batch, int64_t layer);
  void attention_block_backward(const TrainingBatch& batch, int64_t layer);
  const RopeTable& rotations(const LayerConfig& layer) const;
  void tune(const TrainingBatch& batch, const LayerConfig& layer, int64_t first,
            MatrixView q) const;
  void choose(int64_t layer, int64_t first, ConstMatrixView f, Worker& worker);
  void route(int64_t layer);
  MatrixView input_of(int64_t layer, const Piece& piece, Worker& worker);
  MatrixView output_gradient_of(int64_t layer, const Piece& piece, Worker& worker);
  void route_backward(int64_t layer);
  // Whether what a network widens its input to is kept, in bf16, for the backward pass, which makes
  // it once more otherwise.
  bool keeps_wide() const { return parameters_.precision() == Precision::kBF16; }
  static void widen(const Share& share, ConstMatrixView f, int64_t width, Worker& worker);
  void feed_forward_block(int64_t layer);
  void feed_forward_block_backward(int64_t layer);
  void read_out(const TrainingBatch& batch);

  Context& context_;
  Parameters& parameters_;
  const ModelConfig& config_;
  const PassOptions options_;
  LinearMaps maps_;
  std::deque<Worker> workers_;  // one per thread

  int64_t tokens_ = 0;  // T
  float scale_ = 0;
  double weight_ = 0;
  RopeTable rope_in_chunk_, rope_absolute_;
  std::vector<Kept> kept_;             // [L + 1]; of the last one only h
  std::vector<float> losses_;          // [T]
  std::vector<uint8_t> hits_;          // [T]
  std::vector<float> selection_bias_;  // [L, E]
  std::vector<double> expert_shares_;  // [panels, E], of one layer
  PassReport report_;
  AlignedArray<float> dh_;  // [T, D], gradient of the residual stream
  // Scratch of one block.
  std::deque<Turned> turned_;                  // of each share
  AlignedArray<float> out_;                    // [T + S, D]
  AlignedArray<float> dnormed_;                // [T + S, D]
  AlignedArray<float> dq_, dk_, dv_, dmixed_;  // [T, H*d], [T, K*d]
  AlignedArray<float> drouter_;                // [T, E]
  TurnedInput turned_normed_;                  // of the rows that are read out at a time
  TurnedOutput turned_dlogits_;
};

}  // namespace drover
