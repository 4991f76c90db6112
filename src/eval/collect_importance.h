// Finds out how much each input of a model's maps matters: watches a decoder at work and sums the
// squares of what it sees (model/importance.h).
#pragma once

#include <unordered_map>

#include "kernels/context.h"
#include "model/decoder.h"
#include "model/importance.h"
#include "model/model.h"

namespace drover {

// Squares are summed in double, token after token, so the result does not depend on threads or on
// how the text was cut into batches. One thread at a time; `context` is that of the decoder and
// must outlive the collector. Memory: 8 bytes per input column of every map, experts each.
class ImportanceCollector : public InputObserver {
 public:
  ImportanceCollector(Context& context, const Model& model);

  void see(WeightView w, ConstMatrixView x) override;

  // What was seen so far; maps that saw nothing are left out. kBadData, naming the tensor, if the
  // model has computed what is no number.
  Importance result() const;

 private:
  struct Slot {
    InputStatistics* statistics;
    int64_t matrix;
  };

  Context& context_;
  Importance importance_;
  std::unordered_map<const std::byte*, Slot> slots_;  // by where the weights stand
};

}  // namespace drover
