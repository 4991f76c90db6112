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
  void take_patches(std::span<const uint8_t* const> tiles);
  void embed();
  void attention_block(const VisionLayerWeights& w);
  void feed_forward_block(const VisionLayerWeights& w);
  void read_out(MatrixView out);

  // out = x w^T for maps that read the same rows, whose 8-bit form is made if one asks for it.
  struct Map {
    WeightView w;
    MatrixView out;
  };
  void linear(ConstMatrixView x, std::initializer_list<Map> maps);
  // Whether what meets weights of this type is rounded to bf16, as in the reference, which runs in
  // it. Weights in f32 ask for its exact numbers.
  bool rounds(DType type) const { return type != DType::kF32 && takes_rounded(context_.isa, type); }
  // h += x + bias, row by row.
  void add_to_stream(ConstMatrixView x, const float* bias);

  // The first rows of an activation, as a matrix.
  static MatrixView rows(AlignedArray<float>& array, int64_t count, int64_t cols) {
    return {array.data(), count, cols, cols};
  }

  Context& context_;
  const VisionConfig& config_;
  const VisionWeights& weights_;
  RopeTable rope_;        // of one tile
  float normal_[3][256];  // a pixel's value by its byte

  // The tiles at hand, T of them; S = patches + 1 rows each.
  int64_t tiles_ = 0;
  AlignedArray<float> patches_;         // [T n, 3 p p]
  AlignedArray<float> h_;               // [T S, W]  residual stream
  AlignedArray<float> normed_;          // [T S, W]
  AlignedArray<float> q_;               // [T S, W]
  AlignedArray<float> k_;               // [T S, W]
  AlignedArray<float> v_;               // [T S, W]
  AlignedArray<float> mixed_;           // [T S, W]  attention output
  AlignedArray<float> inner_;           // [T S, F]
  AlignedArray<float> joined_;          // [T m, s s W]  m = tile_tokens
  AlignedArray<float> adapted_;         // [2, T m, A]
  AlignedArray<std::byte> pages_;       // keys and values of one layer
  std::vector<std::byte*> page_table_;  // tile after tile
  Int8Rows int8_;
};

}  // namespace drover
