#include "kernels/transpose/transpose.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/transpose/transpose_kernels.h"

namespace drover {
namespace {

const internal::TransposeKernels& transpose_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return internal::kTransposeAvx512;
  if (isa != Isa::kPlain) return internal::kTransposeAvx2;
#endif
  (void)isa;
  return internal::kTransposePlain;
}

// Work is cut in pieces of x of 32 KB: of each row a part that reads well, and for each column
// whole lines to write.
constexpr int64_t kPieceRows = 64;
constexpr int64_t kPieceCols = 128;

// body(t, n, piece) for pieces of x from row t and column n on.
template <typename Body>
void run_pieces(Context& context, ConstMatrixView x, const Body& body) {
  const int64_t across = (x.cols + kPieceCols - 1) / kPieceCols;
  const int64_t down = (x.rows + kPieceRows - 1) / kPieceRows;
  context.threads.run(across * down, [&](int64_t task, int) {
    const int64_t t = task / across * kPieceRows, n = task % across * kPieceCols;
    body(t, n,
         ConstMatrixView(x.row(t) + n, std::min(kPieceRows, x.rows - t),
                         std::min(kPieceCols, x.cols - n), x.stride));
  });
}

}  // namespace

void transpose(Context& context, ConstMatrixView x, DType type, std::byte* out) {
  DROVER_CHECK(type == DType::kBF16 || type == DType::kF32);
  const internal::TransposeKernels& kernels = transpose_kernels(context.isa);
  const auto kernel = type == DType::kF32 ? kernels.to_f32 : kernels.to_bf16;
  const int64_t row_stride = row_bytes(type, x.rows);
  run_pieces(context, x, [&](int64_t t, int64_t n, ConstMatrixView piece) {
    kernel(piece.data, piece.stride, piece.rows, piece.cols,
           out + n * row_stride + row_bytes(type, t), row_stride);
  });
}

void transpose(Context& context, ConstMatrixView x, RoundedRows& out) {
  const auto kernel = transpose_kernels(context.isa).to_block;
  out.resize(x.cols, x.rows);
  run_pieces(context, x, [&](int64_t t, int64_t n, ConstMatrixView piece) {
    for (int64_t row = 0; row < piece.rows; row += 32) {
      for (int64_t col = 0; col < piece.cols; col += 32) {
        kernel(piece.row(row) + col, piece.stride, piece.rows - row, piece.cols - col,
               out.block(n + col, t + row));
      }
    }
  });
}

}  // namespace drover
