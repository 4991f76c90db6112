// The vision encoder forward and backward over tiles: the mathematics of model/vision_encoder.h,
// with all activations kept; spec section 5.
//
// Holds activations of one batch of tiles. One thread at a time uses it; parameters and context
// must outlive it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/packed_attention/packed_attention.h"
#include "kernels/rope/rope.h"
#include "train/linear.h"
#include "train/parameters.h"

namespace drover {

class VisionPass {
 public:
  // parameters must have eyes.
  VisionPass(Context& context, Parameters& parameters);

  // tiles: pixels of each, [P, P, 3]; none is fine. out: [tiles * tile_tokens, D], overwritten.
  void forward(std::span<const uint8_t* const> tiles, MatrixView out);

  // After forward(), with the same parameters taught: adds to their gradients, given that of out.
  // Parts whose parameters are all frozen, and have nothing taught below them, are not computed,
  // nor is anything kept for them.
  void backward(ConstMatrixView dout);

 private:
  // What of a layer the backward pass needs. R = T S rows of T tiles.
  struct Kept {
    AlignedArray<float> h;              // [R, W], what comes in
    AlignedArray<float> normed;         // [R, W], of h
    AlignedArray<float> q, k, v;        // [R, W], as attention takes them
    AlignedArray<float> mixed;          // [R, W], attention's output
    AlignedArray<float> log_sums;       // [R, H]
    AlignedArray<float> middle;         // [R, W], h after attention
    AlignedArray<float> f;              // [R, W], normed middle
    AlignedArray<float> inner, active;  // [R, F], before and after GELU
  };
  // What a thread needs to go through a block by itself.
  struct Worker {
    explicit Worker(Isa isa) : own(std::in_place, /*threads=*/1, isa), context(*own), maps(*own) {}
    explicit Worker(Context& shared) : context(shared), maps(shared) {}
    std::optional<Context> own;
    Context& context;
    LinearMaps maps;
    AlignedArray<float> dnormed, dmixed;  // scratch of the rows at hand
  };
  // Tiles that are taken through a block together, rows [first, first + rows) of R: so few by one
  // thread that what they read and write stays in its cache; or all by all threads.
  struct Group {
    Worker& worker;
    int64_t first, rows;
  };
  // Of a map of the adapter or the projector: what it reads, and the same before GELU.
  struct KeptMap {
    AlignedArray<float> before, x;
  };

  // The parts in order, counted from the input: embeddings and their norm; attention and feed
  // forward of each layer; the last norm; the adapter's two maps and the projector.
  int64_t attention_part(int64_t layer) const { return 1 + 2 * layer; }
  int64_t feed_part(int64_t layer) const { return 2 + 2 * layer; }
  int64_t post_norm_part() const { return 1 + 2 * config_.layer_count; }
  int64_t map_part(int64_t map) const { return post_norm_part() + 1 + map; }
  int64_t lowest_taught_part() const;  // one beyond the last if all is frozen
  // Whether the gradient of what this part reads is wanted.
  bool goes_below(int64_t part) const { return lowest_ < part; }

  // Of layer i, or h alone of i = layers, what the last norm reads. Layers that backward() does not
  // reach share the memory of the first one that it does.
  Kept& kept(int64_t layer) {
    return kept_[static_cast<size_t>(std::max(layer - first_kept_, int64_t{0}))];
  }

  void embed(std::span<const uint8_t* const> tiles);
  void prepare();  // takes memory, which threads must not
  void in_groups(const std::function<void(const Group&)>& body);
  void attention_forward(const Group& g, int64_t layer);
  void feed_forward(const Group& g, int64_t layer);
  void read_out(MatrixView out);

  bool read_out_backward(ConstMatrixView dout);  // whether anything below is taught
  void feed_backward(const Group& g, int64_t layer);
  void attention_backward(const Group& g, int64_t layer);
  void add_gradients(int64_t layer, bool with_attention);
  void embed_backward();

  void norm(const TaughtMap& w, MatrixView out, ConstMatrixView x);
  void norm_backward(const TaughtMap& w, MatrixView dx, ConstMatrixView dy, ConstMatrixView x);
  // The same of a layer's norm: the sums of each kGroupTiles tiles wait, so that their order knows
  // of no threads; and are added.
  enum WhichNorm { kAttentionNorm, kFfnNorm };
  void norm_backward(const Group& g, WhichNorm which, const TaughtMap& w, MatrixView dx,
                     ConstMatrixView dy, ConstMatrixView x);
  void add_norm_sums(WhichNorm which, const TaughtMap& w);
  PackedAttention attention(const Group& g) const;

  int64_t groups() const;
  MatrixView rows_of(const Group& g, MatrixView x) const;
  // [R, W] and [R, F] of this memory, which grows as needed.
  MatrixView hidden(AlignedArray<float>& memory) const;
  MatrixView inner(AlignedArray<float>& memory) const;

  Context& context_;
  TaughtVision& vision_;
  const VisionConfig& config_;
  const Precision precision_;
  LinearMaps maps_;
  std::deque<Worker> workers_;   // one per thread
  Worker all_;                   // all threads
  Parameter* const adapter_[3];  // its two maps, and the projector
  RopeTable rope_;               // of one tile

  int64_t rows_ = 0;        // R
  int64_t tokens_ = 0;      // T tile_tokens
  int64_t lowest_ = 0;      // part with something taught
  int64_t first_kept_ = 0;  // layer
  std::vector<RowSpan> tiles_;
  AlignedArray<float> patches_;   // [R, 3 p p]
  AlignedArray<float> embedded_;  // [R, W], before the norm
  std::vector<Kept> kept_;
  KeptMap kept_maps_[3];
  // [R, W], gradients of the residual stream: of what leaves a layer, of its middle, of what it
  // reads. All three stay until those of the weights are made.
  AlignedArray<float> dh_, dmiddle_, dbefore_;
  AlignedArray<float> dq_, dk_, dv_;  // [R, W]
  AlignedArray<float> dinner_;        // [R, F]
  AlignedArray<float> norm_sums_[2];  // by WhichNorm, [groups, 2, W]: dweight and dbias
  AlignedArray<float> finished_, dnormed_, dmaps_[3], nowhere_;
};

}  // namespace drover
