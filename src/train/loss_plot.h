// The losses of a training as a picture.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace drover {

struct LossCurve {
  std::string name;                               // "training", or a source, held out
  std::vector<std::pair<double, double>> points;  // step, nats
};

// From the text of a metrics.jsonl; the training's comes first. `source` names it in errors.
std::vector<LossCurve> loss_curves(std::string_view metrics, const std::string& source);

// Nats on a logarithmic axis over steps: the training's losses in grey with a running mean over
// them, the held-out ones in colour. Curves are thinned to what can be seen.
std::string loss_svg(std::span<const LossCurve> curves, std::string_view title);

}  // namespace drover
