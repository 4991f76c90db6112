// A step of AdamW over numbers that lie in a row.
#pragma once

#include <cstdint>

#include "kernels/adamw/adamw_step.h"
#include "kernels/context.h"

namespace drover {

// For each i < n, with g = scale * gradient[i]:
//   m = beta1 * m + other1 * g,  v = beta2 * v + other2 * g^2
//   value = keep * value - step * m / (sqrt(v) * root + epsilon)
// No two arrays overlap. Element by element, unfused: the same bits on any number of threads and
// any instruction set. Does not fail. Source: Loshchilov & Hutter 2017, arXiv 1711.05101.
void adamw(Context& context, const AdamWStep& step, int64_t n, const float* gradient, float* value,
           float* m, float* v);

}  // namespace drover
