// What changes over a training by its place in the plan: the rate, and the bias of experts. Pure
// functions.
#pragma once

#include <cstdint>
#include <span>

namespace drover {

// Where a training stands. Stages may end early, so the plan can shrink: `left` counts the step
// that comes now and all that are planned after it.
struct PlanPlace {
  int64_t step = 0;  // done before
  int64_t left = 1;
  int64_t total = 1;  // of the recipe, as if no stage ended early

  double fraction() const {  // of the plan that lies behind
    return static_cast<double>(total - left) / static_cast<double>(total);
  }
};

// Warm-up from zero, a stable middle, a decay to zero. Source: Hu et al. 2024, arXiv 2404.06395.
struct Schedule {
  enum class Kind { kLinear, kCosine };
  int64_t warmup = 0;  // steps
  double decay = 0;    // the part of all steps, at the end
  Kind kind = Kind::kLinear;

  int64_t decay_steps(int64_t total) const;
};

// What rates are multiplied by: (step + 1) / warmup at the beginning, at the end with d decay steps
// left / d, or (1 - cos(pi left / d)) / 2; the smaller of the two where they meet.
double rate_scale(const Schedule& schedule, const PlanPlace& place);

// The bias that is added to router logits when experts are chosen, so that all are used. It is no
// part of a model that is written, so it has to be gone before the end: up to the fraction `until`
// of the plan it learns, then it falls to zero in a line over half of what is left, and the rest
// of the training is without it. Source: Wang et al. 2024, arXiv 2408.15664, but for the fall.
struct SelectionBias {
  double rate = 0;
  double until = 0.5;
};

// After a step at this place: bias[l,e] += rate * sign(mean over e of tokens[l,:] - tokens[l,e]),
// or the fall. bias, tokens: [L, E]; layers without tokens stay as they are.
void update_selection_bias(const SelectionBias& rule, const PlanPlace& place, int64_t experts,
                           std::span<const int64_t> tokens, std::span<float> bias);

}  // namespace drover
