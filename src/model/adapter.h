// What low-rank adapters add to a decoder's maps at run time: B (A x) beside W x, the weights
// staying as and where they are. Several adapters are one whose rank is the sum of theirs.
//
// An Adapter owns its factors, in f32, and never changes once it is bound, so any number of threads
// may read.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/aligned.h"
#include "kernels/context.h"
#include "kernels/matmul/matmul.h"
#include "model/peft.h"
#include "tensor/view.h"

namespace drover {

struct Weights;

class Adapter {
 public:
  // The factors of one tensor. Gate and up of experts share theirs of the input.
  struct Factors {
    ExpertsView a;  // [matrices, rank, cols]
    ExpertsView b;  // [matrices, rows, rank], scale applied
  };

  // Changes nothing.
  Adapter() = default;
  explicit Adapter(std::span<const LowRank> adapters);

  bool empty() const { return factors_.empty(); }
  int64_t bytes() const { return bytes_; }

  // By the names of GGUF.
  const std::map<std::string, Factors, std::less<>>& factors() const { return factors_; }
  const Factors* find(std::string_view tensor) const;  // null where nothing is added

  // Adds its part to rows of a tensor: values: [count, cols], rows first, first + 1 ... of matrix
  // `index`. The products of a row are summed in order of rank.
  void merge(const Factors& factors, int64_t index, int64_t first, int64_t count,
             std::span<float> values) const;

  // From now on add() knows these weights' maps, which must outlive it. kInternal if one is
  // missing.
  void bind(const Weights& weights);

  // out += B (A x) for those of the jobs whose map is adapted, after matmul() has done them. A
  // row's result depends on the row alone, as there. scratch: memory to use, grown where it must
  // be.
  void add(Context& context, std::span<const MatmulJob> jobs, AlignedArray<float>& scratch) const;

 private:
  struct Map {
    WeightView a, b;
  };

  int64_t bytes_ = 0;
  std::vector<AlignedArray<float>> owned_;
  std::map<std::string, Factors, std::less<>> factors_;
  std::unordered_map<const std::byte*, Map> maps_;  // by where the weights stand
};

// Folders as PEFT writes them (model/peft.h), together.
Adapter read_adapter(std::span<const std::string> folders, const ModelConfig& config);

}  // namespace drover
