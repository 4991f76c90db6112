// x and dy of a linear map as dW = dy^T x takes them: turned, and rounded where products are. They
// are made of a few rows at a time, by whoever has those in his cache, and dW of all of them later.
//
// dW is summed in panels of rows: x^T and dy^T of one stay in the second-level cache with the part
// of dW that they are added to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/rounded_rows.h"
#include "train/parameters.h"

namespace drover {

// How rows are cut: in equal panels of at most 576, of a multiple of 32 rows, filled up with zeros.
class RowPanels {
 public:
  explicit RowPanels(int64_t rows);

  int64_t count() const { return each_ > 0 ? (rows_ + each_ - 1) / each_ : 0; }
  int64_t first(int64_t panel) const { return panel * each_; }
  int64_t rows() const { return rows_; }
  int64_t rows(int64_t panel) const;
  int64_t length(int64_t panel) const;  // with zeros
  int64_t each() const { return each_; }

 private:
  int64_t rows_, each_;
};

// What the factors of a map's dW are made of.
struct GradientForm {
  GradientForm(Isa isa, const Parameter& w);
  bool operator==(const GradientForm&) const = default;

  DType type;    // of x^T
  bool in_unit;  // x^T lies as the matrix unit takes it, and dy^T is bf16 too; else that is f32
};

class TurnedOutput;

// x^T, in strips of columns of x. Owns its memory, which grows and is kept. Rows of different
// panels, or from other multiples of 32 on, may be put by different threads at once; read by any
// number after that.
class TurnedInput {
 public:
  static constexpr int64_t kStrip = 768;

  // For `rows` rows of `cols` values; the old content is lost.
  void resize(GradientForm form, int64_t rows, int64_t cols);

  // Rows first, first + 1 ... of one panel; `first` is a multiple of 32, and so is their number
  // where the panel goes on. context: of the calling thread, or of all.
  // past_caches: it will not be read soon.
  void put(Context& context, int64_t first, ConstMatrixView x, bool past_caches = false);

  const RowPanels& panels() const { return panels_; }

 private:
  friend void add_product(Context&, const TurnedOutput&, const TurnedInput&, int64_t, int64_t,
                          int64_t, int64_t, MatrixView);
  struct Strip {
    RoundedRows rounded;
    AlignedArray<std::byte> plain;  // [columns of the strip, length]
  };
  int64_t strips() const { return (cols_ + kStrip - 1) / kStrip; }
  int64_t strip_cols(int64_t strip) const { return std::min(kStrip, cols_ - strip * kStrip); }

  RowPanels panels_{0};
  DType type_ = DType::kF32;
  bool in_unit_ = false;
  int64_t cols_ = 0;
  std::deque<Strip> data_;  // [panels][strips]
};

// dy^T. Otherwise the same.
class TurnedOutput {
 public:
  void resize(GradientForm form, int64_t rows, int64_t cols);
  void put(Context& context, int64_t first, ConstMatrixView dy, bool past_caches = false);

  const RowPanels& panels() const { return panels_; }

 private:
  friend void add_product(Context&, const TurnedOutput&, const TurnedInput&, int64_t, int64_t,
                          int64_t, int64_t, MatrixView);
  RowPanels panels_{0};
  DType type_ = DType::kF32;
  int64_t cols_ = 0, panel_bytes_ = 0;
  AlignedArray<std::byte> data_;  // [panels][cols][length]
};

// out += dy^T x of a panel, for columns [first, first + count) of dy and those of a strip of x.
// out: [count, columns of the strip].
void add_product(Context& context, const TurnedOutput& dy, const TurnedInput& x, int64_t panel,
                 int64_t first, int64_t count, int64_t strip, MatrixView out);

}  // namespace drover
