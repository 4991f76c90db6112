// Rotary position embedding of adjacent pairs, the complex form.
#pragma once

#include <cstdint>
#include <span>

#include "base/aligned.h"
#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// cos and sin of position times frequency, for the tokens of one batch or the patches of a tile.
// Made once and used by every rotating layer.
class RopeTable {
 public:
  // positions: [T]. frequencies: [d/2], radians per token. Angles are formed in float32, as the
  // reference does.
  void fill(std::span<const int64_t> positions, std::span<const float> frequencies);

  // The rows of a tile of side * side patches in row-major order, then of a class token that is not
  // rotated. frequencies: [d/4], radians per patch. The first half of a patch's pairs turns by
  // (x + 1) f, the second half by (y + 1) f. Source: spec section 5.3.
  void fill_2d(int64_t side, std::span<const float> frequencies);

  int64_t pairs() const { return pairs_; }
  // cos then sin of token t, `pairs` of each.
  const float* token(int64_t t) const { return table_.data() + t * 2 * pairs_; }

 private:
  void resize(int64_t tokens, int64_t pairs);
  // Token t's pairs from `pair` on, one per frequency.
  void set(int64_t t, int64_t pair, int64_t position, std::span<const float> frequencies);

  AlignedArray<float> table_;
  int64_t pairs_ = 0;
};

// Rotates each head of x in place: (x[2k], x[2k+1]) as a complex number times e^{i p f_k}.
// x: [T, heads * 2 * pairs]. Does not fail.
// Source: Su et al. 2021, arXiv 2104.09864; spec section 2.2.
void rope(Context& context, MatrixView x, const RopeTable& table);

}  // namespace drover
