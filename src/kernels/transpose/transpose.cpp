#include "kernels/transpose/transpose.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/transpose/transpose_kernels.h"

namespace drover {

const internal::TransposeKernels& internal::transpose_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return kTransposeAmx;
  if (isa == Isa::kAvx512) return kTransposeAvx512;
  if (isa != Isa::kPlain) return kTransposeAvx2;
#endif
  (void)isa;
  return kTransposePlain;
}

namespace {

// Work is cut in pieces of x of 32 KB: of each row a part that reads well, and for each column
// whole lines to write.
constexpr int64_t kPieceRows = 64;
constexpr int64_t kPieceCols = 128;

// An output as large as half of a second-level cache would not stay there until it is read, and its
// rows, far apart and often by a power of two, fetch badly: past the caches a thread moves 13 GB/s
// in place of 5 (4096 x 512 to bf16, on a core of a Sapphire Rapids).
constexpr int64_t kPastCaches = 1 << 20;

// body(t, n, piece, out_cols) for pieces of x from row t and column n on, and of an output that is
// `length` wide.
template <typename Body>
void run_pieces(Context& context, ConstMatrixView x, int64_t length, const Body& body) {
  const int64_t across = (x.cols + kPieceCols - 1) / kPieceCols;
  const int64_t down = (length + kPieceRows - 1) / kPieceRows;
  context.threads.run(across * down, [&](int64_t task, int) {
    const int64_t t = task / across * kPieceRows, n = task % across * kPieceCols;
    const int64_t first = std::min(t, x.rows);
    const ConstMatrixView piece(x.row(first) + n, std::min(kPieceRows, x.rows - first),
                                std::min(kPieceCols, x.cols - n), x.stride);
    body(t, n, piece, std::min(kPieceRows, length - t));
  });
}

}  // namespace

void transpose(Context& context, ConstMatrixView x, DType type, std::byte* out, int64_t length,
               int64_t stride, bool past_caches) {
  DROVER_CHECK(type == DType::kBF16 || type == DType::kF32);
  if (length == 0) length = x.rows;
  if (stride == 0) stride = length;
  DROVER_CHECK(length >= x.rows && stride >= length);
  const internal::TransposeKernels& kernels = internal::transpose_kernels(context.isa);
  const auto kernel = type == DType::kF32 ? kernels.to_f32 : kernels.to_bf16;
  const int64_t row_stride = row_bytes(type, stride);
  const bool lines = row_stride % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  past_caches = lines && (past_caches || row_stride * x.cols >= kPastCaches);
  run_pieces(context, x, length,
             [&](int64_t t, int64_t n, ConstMatrixView piece, int64_t out_cols) {
               kernel({.x = piece.data,
                       .stride = piece.stride,
                       .rows = piece.rows,
                       .cols = piece.cols,
                       .out = out + n * row_stride + row_bytes(type, t),
                       .out_stride = row_stride,
                       .out_cols = out_cols,
                       .past_caches = past_caches});
             });
}

void transpose(Context& context, ConstMatrixView x, RoundedRows& out, int64_t first, int64_t length,
               bool past_caches) {
  DROVER_CHECK(length >= x.rows && first % 32 == 0 && out.rows() == x.cols);
  DROVER_CHECK(first + length == out.cols() || (length % 32 == 0 && first + length < out.cols()));
  const auto kernel = internal::transpose_kernels(context.isa).to_block;
  run_pieces(context, x, length,
             [&](int64_t t, int64_t n, ConstMatrixView piece, int64_t out_cols) {
               for (int64_t row = 0; row < out_cols; row += 32) {
                 for (int64_t col = 0; col < piece.cols; col += 32) {
                   kernel(piece.row(row) + col, piece.stride, piece.rows - row, piece.cols - col,
                          out.block(n + col, first + t + row), past_caches);
                 }
               }
             });
}

}  // namespace drover
