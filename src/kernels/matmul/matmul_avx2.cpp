// AVX2, FMA and F16C.
#include "kernels/matmul/matmul_kernels.h"

#if defined(__x86_64__)
#include "kernels/matmul/matmul_avx2.h"

namespace drover::internal {

void matmul_tile_avx2(const MatmulTile& tile) {
  using V = Avx2</*kVnni=*/false>;
  if (multiply_if_float<V>(tile)) return;
  if (tile.w_rows < V::kRows) return matmul_tile_plain(tile);
  multiply_if_quantized<V>(tile);
}

}  // namespace drover::internal
#endif
