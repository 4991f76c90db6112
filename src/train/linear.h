// Linear maps of a pass and their gradients, as matrix products of the house (kernels/matmul): with
// bf16 copies of weights and activations rounded likewise, or in f32 where the parameter has no
// such copies (Parameter::rounds()). On the matrix unit the weights are its packed factor: they are
// packed once a step, and what comes out lies as it should.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/matmul/matmul.h"
#include "train/parameters.h"
#include "train/turned_rows.h"

namespace drover {

// y = W x (+ bias) for the rows of x; W is matrix `index` of the parameter.
struct LinearForward {
  const Parameter* w = nullptr;
  int64_t index = 0;
  ConstMatrixView x;  // [T, cols]
  MatrixView y;       // [T, rows]
  bool add = false;   // to y, in place of overwriting it
  const Parameter* bias = nullptr;
};

// dx = W^T dy,  dW += dy^T x,  dbias += sum over rows of dy; those of frozen parameters are left
// out.
struct LinearBackward {
  Parameter* w = nullptr;
  int64_t index = 0;
  ConstMatrixView x;   // [T, cols]
  ConstMatrixView dy;  // [T, rows]
  MatrixView dx;       // [T, cols]; not wanted if it has no data
  bool add = false;    // to dx, in place of overwriting it
  Parameter* bias = nullptr;
  // What stands in for x and dy where only dW is wanted, of both or of neither. No bias then.
  const TurnedInput* turned_x = nullptr;
  const TurnedOutput* turned_dy = nullptr;
};

// Holds scratch memory; one thread at a time uses it.
class LinearMaps {
 public:
  explicit LinearMaps(Context& context);

  // Maps that read one input, or the experts of a layer, belong in one call. No two outputs may
  // overlap.
  void forward(std::span<const LinearForward> maps);
  // Maps that have dx in common, as the same view, add to it in order: the first overwrites it or
  // not, the others say `add`. The sum over rows in dW is made of the sums of panels
  // (turned_rows.h), in order: the same bits on any number of threads.
  void backward(std::span<const LinearBackward> maps) {
    pass_back(maps);
    add_gradients(maps);
  }
  // Its halves: dx alone, and dW and dbias alone, of many maps at once if need be.
  void pass_back(std::span<const LinearBackward> maps);
  void add_gradients(std::span<const LinearBackward> maps);

 private:
  // Columns of dy, and so rows of dW = dy^T x and of dbias, of one map.
  struct Strip {
    const LinearBackward* map;
    int64_t first, count;
  };
  // What a thread does at a time: for a strip of columns of one x, strips of maps that read it.
  struct Part {
    int64_t input;
    std::vector<Strip> strips;
  };
  struct Worker {  // of a thread
    explicit Worker(Isa isa) : context(/*threads=*/1, isa) {}
    Context context;
    // Of one panel, where nobody has turned it before.
    TurnedInput x;
    TurnedOutput dy;
  };
  // Those of maps that read one x, each of so many columns of dy at the most.
  static void add_parts(std::span<const LinearBackward> maps, int64_t columns,
                        std::vector<Part>& parts);
  static void add_gradients_of(Worker& worker, const Part& part);

  Context& context_;
  std::deque<Worker> workers_;
};

}  // namespace drover
