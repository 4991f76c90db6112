// The vision encoder forward and backward over tiles: the mathematics of model/vision_encoder.h,
// with all activations kept; spec section 5.
//
// Holds activations of one batch of tiles. One thread at a time uses it; parameters and context
// must outlive it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"
#include "train/linear.h"
#include "train/parameters.h"

namespace drover {

class VisionPass {
 public:
  // parameters must have eyes.
  VisionPass(Context& context, Parameters& parameters);

  // tiles: pixels of each, [P, P, 3]. out: [tiles * tile_tokens, D], overwritten.
  void forward(std::span<const uint8_t* const> tiles, MatrixView out);

  // After forward(): adds to the gradients of taught parameters, given that of out. Parts whose
  // parameters are all frozen, and have nothing taught below them, are not computed.
  void backward(ConstMatrixView dout);
};

}  // namespace drover
