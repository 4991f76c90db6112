#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace drover {

int64_t Schedule::decay_steps(int64_t total) const {
  return std::llround(decay * static_cast<double>(total));
}

double rate_scale(const Schedule& schedule, const PlanPlace& place) {
  double scale = 1;
  if (place.step < schedule.warmup) {
    scale = static_cast<double>(place.step + 1) / static_cast<double>(schedule.warmup);
  }
  const int64_t decay = schedule.decay_steps(place.total);
  if (place.left < decay) {
    const double left = static_cast<double>(place.left) / static_cast<double>(decay);
    constexpr double kPi = 3.141592653589793;
    scale = std::min(
        scale, schedule.kind == Schedule::Kind::kLinear ? left : (1 - std::cos(kPi * left)) / 2);
  }
  return scale;
}

void update_selection_bias(const SelectionBias& rule, const PlanPlace& place, int64_t experts,
                           std::span<const int64_t> tokens, std::span<float> bias) {
  DROVER_CHECK(tokens.size() == bias.size());
  if (experts == 0 || rule.rate == 0) return;
  if (place.fraction() >= rule.until) {
    // Steps until it is gone, this one included, of a fall that ends halfway to the end of the
    // plan.
    const double end = static_cast<double>(place.total) * (1 - rule.until) / 2;
    const double steps = static_cast<double>(place.left) - end;
    const auto factor = static_cast<float>(steps > 1 ? (steps - 1) / steps : 0.0);
    for (float& b : bias) b *= factor;
    return;
  }
  const auto count = static_cast<size_t>(experts);
  for (size_t first = 0; first + count <= tokens.size(); first += count) {
    const auto of = tokens.subspan(first, count);
    const int64_t all = std::accumulate(of.begin(), of.end(), int64_t{0});
    for (size_t e = 0; e < count; ++e) {
      const int64_t below = all - experts * of[e];
      const float sign = below > 0 ? 1.0f : below < 0 ? -1.0f : 0.0f;
      bias[first + e] += static_cast<float>(rule.rate) * sign;
    }
  }
}

}  // namespace drover
