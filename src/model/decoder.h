// The one decoder: tokens of one or many sequences in, logits out. Spec sections 2 and 3.
//
// It holds scratch memory for one batch and nothing of any sequence; config, weights and caches are
// passed in and stay with their owners. One thread at a time calls a Decoder.
//
// A token's logits depend on the tokens before it in its sequence and on nothing else: not on the
// other sequences of the batch, not on how its prompt was cut into batches, not on the number of
// threads. They are the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "cache/kv_cache.h"
#include "kernels/context.h"
#include "kernels/matmul/int8_rows.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rope/rope.h"
#include "model/config.h"
#include "model/weights.h"
#include "text/vocabulary.h"

namespace drover {

// The next tokens of one sequence, to be appended to its cache.
struct SequenceSlice {
  KvCache* cache = nullptr;
  std::span<const Token> tokens;
  int64_t logits = 1;  // how many of the last tokens want logits
  // The chunk of this position is the first that anybody will ask the tail of the layers about
  // (CacheLayout::tail): for a prompt that is read in slices, where its last token stands.
  int64_t live = 0;
  // Empty, or for each token what stands in place of its embedding (a row of a picture, [D]), null
  // where the token's own does.
  std::span<const float* const> embeddings = {};
  // With a choice of pages, what was visited of global layers is added here; may be null.
  PageVisits* visits = nullptr;
  // [n, D], the last hidden states of the last n tokens are written here, after the final norm;
  // none are wanted if it has no rows.
  MatrixView states = {};

  // How many of the last tokens are wanted to the end of the last layer.
  int64_t wanted() const { return std::max(logits, states.rows); }
};

// Exact ways to compute less. Each can be switched off, to compare.
struct Shortcuts {
  // What a token gives to nobody is not computed. Tokens of later chunks see of an earlier one the
  // keys and values of global layers alone, so after those of the LAST global layer a token outside
  // the live chunk is done; and after those of the last layer all are that want no logits. Reading
  // a text with one global layer so takes time in proportion to its length. Bits stay the same.
  bool dead_prefill = true;
  // Chunked layers take positions modulo the chunk, where float32 angles are exact at any length.
  // Without it results differ in rounding, more the longer the context.
  bool positions_in_chunk = true;
};

// Is shown what every linear map is about to be multiplied with.
class InputObserver {
 public:
  virtual ~InputObserver() = default;
  // x: [rows, w.cols], the inputs of the map w in order of token; one of the experts is a map of
  // its own, and its data stands at ExpertsView::expert(e). The views last for the call. On the
  // thread that runs the decoder, whose Context is free meanwhile. May throw.
  virtual void see(WeightView w, ConstMatrixView x) = 0;
};

class Decoder {
 public:
  // `config`, `weights` and `context` must outlive the decoder.
  Decoder(Context& context, const ModelConfig& config, const Weights& weights,
          Shortcuts shortcuts = {});

  // Runs the slices, at most one of each sequence, as one batch and advances their caches.
  // logits: [sum of slices' logits, V], slices in order; may have no rows.
  // Throws kLimit if a cache has no room and kBadData for a token outside the vocabulary; then no
  // cache has changed. After any other exception a cache must be rewound before it is used again.
  // between_layers(n), if there is one, is called when n layers are done, before the next, and may
  // stop the rest by returning false: then forward() returns false and every cache must be rewound.
  bool forward(std::span<const SequenceSlice> slices, MatrixView logits,
               const std::function<bool(int64_t layers)>& between_layers = {});

  // From now on global layers visit the pages that this choice leaves (attention.h), for every
  // token; nothing: all, exactly.
  void choose(std::optional<PageChoice> choice) { choice_ = choice; }

  // [L, E]: how many tokens each layer has sent to each of its experts so far, as many as it
  // computed; zeros in dense layers.
  std::span<const int64_t> expert_tokens() const { return expert_tokens_; }

  // From now on this observer, which must outlive its use, is shown all inputs; null for none.
  void observe(InputObserver* observer) { observer_ = observer; }

 private:
  // Consecutive tokens of one sequence inside one chunk: rows [row, row + count) of the batch.
  struct Segment {
    size_t slice;
    KvCache* cache;
    int64_t row;
    int64_t count;
    int64_t position;
  };
  using Waves = std::vector<std::vector<Segment>>;

  // All jobs, with what an adapter adds to them.
  void multiply_all(std::span<const MatmulJob> jobs);
  // The product of x, whose 8-bit form is in int8_ from row `first` on if w needs it, and w.
  MatmulJob job(ConstMatrixView x, int64_t first, WeightView w, MatrixView out) const;
  void plan(std::span<const SequenceSlice> slices);
  void reserve_activations();
  void fill_rotations();
  void embed(std::span<const SequenceSlice> slices);
  int64_t live_from(const SequenceSlice& slice) const;
  int64_t needed_in_tail(const SequenceSlice& slice) const;
  int64_t needed_after_keys(const SequenceSlice& slice, int64_t layer) const;
  void keep_rows(std::span<const SequenceSlice> slices, std::span<const int64_t> needed);
  void attention_block(std::span<const SequenceSlice> slices, int64_t layer);
  void tune(const LayerConfig& layer, MatrixView q);
  void store_and_attend(std::span<const SequenceSlice> slices, int64_t layer, const Waves& stored,
                        MatrixView k, MatrixView v);
  void feed_forward_block(int64_t layer);
  void route(const LayerWeights& w);
  void read_out(std::span<const SequenceSlice> slices, MatrixView logits);

  Context& context_;
  const ModelConfig& config_;
  const Weights& weights_;
  const Shortcuts shortcuts_;
  const int64_t tail_;  // CacheLayout::tail
  InputObserver* observer_ = nullptr;
  std::optional<PageChoice> choice_;

  // The batch: of each slice the last tokens, as many as are still needed.
  int64_t tokens_ = 0;              // T
  std::vector<int64_t> kept_;       // of each slice
  std::vector<int64_t> positions_;  // [T], absolute
  Waves waves_;                     // wave w: the w-th segment of every sequence
  RopeTable rope_in_chunk_;         // for chunked layers
  RopeTable rope_absolute_;         // for the others

  // Activations: rows of floats, [T, ...].
  AlignedArray<float> h_;       // [T, D]     residual stream
  AlignedArray<float> normed_;  // [T(1+k), D] normed tokens, then their gated copies by expert
  AlignedArray<float> q_;       // [T, H*d]
  AlignedArray<float> k_;       // [T, K*d]
  AlignedArray<float> v_;       // [T, K*d]
  AlignedArray<float> mixed_;   // [T, H*d]   attention output
  AlignedArray<float> gate_;    // [T(1+k), F] or [T, M]
  AlignedArray<float> up_;      // [T(1+k), F] or [T, M]
  AlignedArray<float> out_;     // [T(1+k), D] output of a block, added to h
  AlignedArray<float> router_;  // [T, E]
  AlignedArray<float> adapted_;  // products with an adapter's A
  Int8Rows int8_;               // 8-bit form of the rows that are about to be multiplied

  // Routing of the layer at hand. A slot is the gated copy of a token for one of its experts.
  std::vector<int64_t> ranked_;         // [E], scratch
  std::vector<int64_t> expert_first_;   // [E + 1], first slot of each expert
  std::vector<int64_t> slots_;          // [T, k], in ascending order of expert
  std::vector<int64_t> chosen_;         // [T, k], experts, ascending
  std::vector<int64_t> expert_tokens_;  // [L, E]
};

}  // namespace drover
