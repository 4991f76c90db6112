// The loss of a language model and its gradient, in one pass over the logits.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "tensor/view.h"

namespace drover {

// Of each row t, with p = softmax(logits[t,:]):
//   losses[t] = -ln p[targets[t]]
//   logits[t,:] = weights[t] * (p - one_hot(targets[t]))
// logits: [T, V], overwritten by the gradient.  targets: [T], each in [0, V).  weights: [T], what
// the loss of a row counts; a row of weight 0 gets zeros, whatever stood in it, and its loss all
// the same. best: [T] or empty, the index of the largest logit that is not NaN, of equal ones the
// lowest. The sum over V runs in 16 partial sums in float, so that a row's result depends on the
// row alone. A row with a NaN or +infinity gives NaN. Does not fail; targets are the caller's to
// check.
void cross_entropy(Context& context, MatrixView logits, std::span<const int32_t> targets,
                   std::span<const float> weights, std::span<float> losses,
                   std::span<int32_t> best = {});

}  // namespace drover
