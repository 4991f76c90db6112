// The numbers of a step of AdamW. Plain data, since files with instruction-set flags include it.
#pragma once

namespace drover {

struct AdamWStep {
  float scale;          // of gradients
  float beta1, other1;  // other1 = 1 - beta1
  float beta2, other2;
  float keep;  // 1 - rate * decay
  float step;  // rate / (1 - beta1^steps)
  float root;  // 1 / sqrt(1 - beta2^steps)
  float epsilon;
};

}  // namespace drover
