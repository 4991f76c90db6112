// The vision encoder: tiles of pictures in, embeddings for the decoder out. Spec section 5.
//
// It holds scratch memory and nothing of any picture; config, weights and context stay with their
// owners. One thread at a time calls an encoder.
//
// What comes out for a tile depends on the tile alone: not on the tiles beside it, on how many
// there are, or on the number of threads. It is the same bits. Where an instruction set multiplies
// bf16 faster, activations that meet weights of another type than f32 are rounded to it, as in the
// reference; elsewhere all instruction sets give the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/attention/attention.h"
#include "kernels/context.h"
#include "kernels/matmul/int8_rows.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/rounded_rows.h"
#include "kernels/rope/rope.h"
#include "model/vision_weights.h"

namespace drover {

class VisionEncoder {
 public:
  // `vision` and `context` must outlive the encoder.
  VisionEncoder(Context& context, const Vision& vision);

  // tiles: pixels of each, [P, P, 3]. out: [tiles * tile_tokens, D], tile after tile, each row by
  // row. between_layers(done, total), if there is one, is called after every layer of a few tiles
  // with the work done so far in layers of a tile, and may stop the rest by returning false; then
  // encode() returns false and `out` holds nothing of use.
  bool encode(std::span<const uint8_t* const> tiles, MatrixView out,
              const std::function<bool(int64_t done, int64_t total)>& between_layers = {});

 private:
  void embed(std::span<const uint8_t* const> tiles);
  void attention_block(const VisionLayerWeights& w);
  void feed_forward_block(const VisionLayerWeights& w);
  void read_out(MatrixView out);

  // Rows between two operations: floats, or in their place rounded to bf16, where only maps that
  // round read them.
  class Activation {
   public:
    void resize(int64_t rows, int64_t cols, bool rounded = false);
    bool is_rounded() const { return is_rounded_; }
    RoundedRows& rounded() { return rounded_; }
    MatrixView floats() { return {floats_.data(), rows_, cols_, cols_}; }  // no data if rounded
    int64_t rows() const { return rows_; }

   private:
    AlignedArray<float> floats_;
    RoundedRows rounded_;
    int64_t rows_ = 0, cols_ = 0;
    bool is_rounded_ = false;
  };

  // Where a map writes.
  struct Destination {
    MatrixView floats;
    RoundedRows* rounded = nullptr;  // in place of floats

    Destination(MatrixView m) : floats(m) {}
    Destination(Activation& a)
        : floats(a.floats()), rounded(a.is_rounded() ? &a.rounded() : nullptr) {}
  };

  // out = norm(h), rounded if only maps that round read it.
  void norm(const LayerNormWeights& w, Activation& out, bool rounded);

  // y = w x + bias for maps that read the same rows, whose 8-bit form is made if one asks for it.
  enum class Then { kWrite, kGelu, kAdd };  // out = y, out = gelu(y), out += y
  struct Map {
    BiasedMap w;
    Destination out;
    Then then = Then::kWrite;
  };
  void linear(Activation& x, std::initializer_list<Map> maps);

  // Whether what meets these weights is rounded to bf16, as in the reference, which runs in it.
  // Weights in f32 ask for its exact numbers.
  bool rounds(const BiasedMap& w) const {
    return w.weight.type != DType::kF32 && takes_rounded(context_.isa, w.weight.type);
  }

  Context& context_;
  const VisionConfig& config_;
  const VisionWeights& weights_;
  RopeTable rope_;  // of one tile

  // The tiles at hand, T of them; S = patches + 1 rows each.
  int64_t tiles_ = 0;
  Activation patches_;                  // [T S, 3 p p]
  Activation h_;                        // [T S, W]  residual stream
  Activation normed_;                   // [T S, W]
  Activation q_, k_, v_;                // [T S, W]
  Activation mixed_;                    // [T S, W]  attention output
  Activation inner_;                    // [T S, F]
  Activation joined_;                   // [T m, s s W]  m = tile_tokens
  Activation adapted_[2];               // [T m, A]
  AlignedArray<std::byte> pages_;       // keys and values of one layer
  std::vector<std::byte*> page_table_;  // tile after tile
  Int8Rows int8_;
};

}  // namespace drover
