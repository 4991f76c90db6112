// What a vision encoder does with rows where it has no weights: pixels to patches at its beginning,
// and patches to tokens before its end. The same for who looks and for who learns.
//
// Free functions on views. A tile is S = patches + 1 rows, the class token's last.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"
#include "model/vision_config.h"
#include "tensor/view.h"

namespace drover {

// Of the rotation of patches, [d/4], radians per patch: theta^(-4m / d), in float32. Spec section
// 5.3.
std::vector<float> patch_frequencies(const VisionConfig& config);

// Cuts tiles into patches, row by row; the values of one are colour by colour, (x / 255 - mean) /
// std. The class token's row is zeros: it has no pixels.
// tiles: pixels of each, [P, P, 3]. out: [tiles * S, 3 p p], overwritten. Does not fail.
// Source: spec section 5.1.
void take_patches(Context& context, const VisionConfig& config,
                  std::span<const uint8_t* const> tiles, MatrixView out);

// s x s patches become one row, and the class token is dropped. Of each tile, with w = side / s:
//   out[i w + j, (s dy + dx) W + c] = h[(s i + dy) side + s j + dx, c]
// h: [tiles * S, W]. out: [tiles * tile_tokens, s s W], overwritten; no alias. Does not fail.
// Source: spec section 5.5.
void join_patches(Context& context, const VisionConfig& config, MatrixView out, ConstMatrixView h);

// Its gradient: dh is overwritten by what of dout stands where its row went, zeros for the class
// token. Shapes as above.
void join_patches_backward(Context& context, const VisionConfig& config, MatrixView dh,
                           ConstMatrixView dout);

}  // namespace drover
