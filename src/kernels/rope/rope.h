// Rotary position embedding of adjacent pairs, the complex form.
#pragma once

#include <cstdint>
#include <initializer_list>
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

  int64_t tokens() const { return tokens_; }
  int64_t head_dim() const { return width_; }
  // Of token t what each component of a head is multiplied by, and its partner: cos, cos and
  // -sin, sin for the two of a pair.
  const float* cosines(int64_t t) const { return table_.data() + t * 2 * width_; }
  const float* sines(int64_t t) const { return cosines(t) + width_; }

 private:
  void resize(int64_t tokens, int64_t pairs);
  // Token t's pairs from `pair` on, one per frequency.
  void set(int64_t t, int64_t pair, int64_t position, std::span<const float> frequencies);

  AlignedArray<float> table_;
  int64_t tokens_ = 0, width_ = 0;
};

// Rotates each head of the xs in place: (x[2k], x[2k+1]) as a complex number times e^{i p f_k}.
// xs: [T, heads * d] each, of the table's tokens from `first` on, which begin anew where they end,
// tile after tile; T is the same for all. Does not fail.
// Source: Su et al. 2021, arXiv 2104.09864; spec section 2.2.
void rope(Context& context, std::initializer_list<MatrixView> xs, const RopeTable& table,
          int64_t first = 0);

// The gradient of rope(), in place: each head is turned back by the same angles.
void rope_backward(Context& context, std::initializer_list<MatrixView> ds, const RopeTable& table,
                   int64_t first = 0);

}  // namespace drover
