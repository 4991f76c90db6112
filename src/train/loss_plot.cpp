#include "train/loss_plot.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "base/error.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr double kWidth = 860, kHeight = 420, kLeft = 60, kTop = 40, kRight = 190, kBottom = 44;
constexpr double kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;
// Of equal weight to the eye on white, told apart by those who do not see red or green.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#8d6e00", "#5b4ea3"};

using Points = std::vector<std::pair<double, double>>;

// What a curve is drawn between.
struct Axes {
  double last_step = 1;
  double low = 1, high = 1;  // nats

  double x(double step) const { return kLeft + kPlotWidth * step / last_step; }
  double y(double nats) const {
    const double at = std::log(std::clamp(nats, low, high) / low) / std::log(high / low);
    return kTop + kPlotHeight * (1 - at);
  }
};

// Losses of zero and what is no number cannot be drawn on a logarithmic axis.
bool drawable(double nats) { return std::isfinite(nats) && nats > 0; }

Axes axes_of(std::span<const LossCurve> curves) {
  Axes out;
  double low = 1e300, high = 0;
  for (const LossCurve& curve : curves) {
    for (const auto& [step, nats] : curve.points) {
      out.last_step = std::max(out.last_step, step);
      if (!drawable(nats)) continue;
      low = std::min(low, nats);
      high = std::max(high, nats);
    }
  }
  if (high == 0) low = high = 1;
  out.low = std::max(low / 1.1, high / 1e6);
  out.high = high * 1.1;
  return out;
}

// Means of as many neighbours as fall on one point of the picture.
Points thinned(const Points& points, size_t most) {
  Points out;
  const size_t group = std::max<size_t>(1, (points.size() + most - 1) / most);
  for (size_t first = 0; first < points.size(); first += group) {
    double step = 0, nats = 0, count = 0;
    for (size_t i = first; i < std::min(first + group, points.size()); ++i) {
      if (!drawable(points[i].second)) continue;
      step += points[i].first;
      nats += points[i].second;
      ++count;
    }
    if (count > 0) out.emplace_back(step / count, nats / count);
  }
  return out;
}

Points running_mean(const Points& points) {
  Points out;
  double mean = 0, weight = 0;
  // So far back as one sees at a glance.
  const double keep = 1 - 1 / std::max(1.0, static_cast<double>(points.size()) / 50);
  for (const auto& [step, nats] : points) {
    if (!drawable(nats)) continue;
    mean = keep * mean + nats;
    weight = keep * weight + 1;
    out.emplace_back(step, mean / weight);
  }
  return out;
}

std::string line_of(const Axes& axes, const Points& points, std::string_view colour, double width) {
  std::string at;
  for (const auto& [step, nats] : points) {
    at += fmt::format("{}{:.1f},{:.1f}", at.empty() ? "" : " ", axes.x(step), axes.y(nats));
  }
  return fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"/>\n",
                     at, colour, width);
}

std::string text_at(double x, double y, std::string_view anchor, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     text);
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// 1, 2 or 5 times a power of ten, at least `least`.
double round_step(double least) {
  const double power = std::pow(10, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= least) return factor * power;
  }
  return 10 * power;
}

std::string grid(const Axes& axes) {
  std::string out;
  const auto rule = [&](double x1, double y1, double x2, double y2) {
    out += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#e1e1e1\"/>\n", x1,
        y1, x2, y2);
  };
  const double apart = round_step(axes.last_step / 6);
  for (double step = 0; step <= axes.last_step; step += apart) {
    rule(axes.x(step), kTop, axes.x(step), kTop + kPlotHeight);
    out += text_at(axes.x(step), kTop + kPlotHeight + 18, "middle", fmt::format("{}", step));
  }
  double drawn = 1e300;  // labels keep apart
  for (double power = 1e-6; power < axes.high; power *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double nats = factor * power;
      if (nats < axes.low || nats > axes.high || drawn - axes.y(nats) < 16) continue;
      drawn = axes.y(nats);
      rule(kLeft, drawn, kLeft + kPlotWidth, drawn);
      out += text_at(kLeft - 8, drawn + 4, "end", fmt::format("{:.3g}", nats));
    }
  }
  out += text_at(kLeft + kPlotWidth / 2, kHeight - 8, "middle", "step");
  out += text_at(kLeft - 8, kTop - 8, "end", "nats");
  return out;
}

}  // namespace

std::vector<LossCurve> loss_curves(std::string_view metrics, const std::string& source) {
  std::vector<LossCurve> out = {{"training", {}}};
  const auto curve = [&](std::string_view name) -> LossCurve& {
    const auto found = std::find_if(out.begin() + 1, out.end(),
                                    [&](const LossCurve& c) { return c.name == name; });
    if (found != out.end()) return *found;
    return out.emplace_back(LossCurve{std::string(name), {}});
  };
  for (size_t at = 0; at < metrics.size();) {
    const size_t end = std::min(metrics.find('\n', at), metrics.size());
    const json::value line = parse_json(metrics.substr(at, end - at), source);
    at = end + 1;
    if (!line.is_object()) throw_error(ErrorKind::kBadData, "{}: expected objects", source);
    const JsonFields fields(line.get_object(), source);
    const auto step = static_cast<double>(fields.required_integer("step"));
    if (const auto loss = fields.number("loss")) out[0].points.emplace_back(step, *loss);
    if (const auto held_out = fields.fields("held_out")) {
      for (const auto& entry : held_out->object()) {
        const std::string_view name(entry.key().data(), entry.key().size());
        curve(name).points.emplace_back(step,
                                        held_out->required_fields(name).required_number("loss"));
      }
    }
  }
  return out;
}

std::string loss_svg(std::span<const LossCurve> curves, std::string_view title) {
  const Axes axes = axes_of(curves);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#202020\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, kHeight);
  out += fmt::format("<text x=\"{}\" y=\"20\" font-size=\"15\">{}</text>\n", kLeft, escaped(title));
  out += grid(axes);
  const auto columns = static_cast<size_t>(kPlotWidth);
  size_t colour = 0;
  double legend = kTop + 8;
  const auto name = [&](const LossCurve& curve, std::string_view of, std::string_view kind) {
    out += fmt::format("<rect x=\"{}\" y=\"{:.1f}\" width=\"14\" height=\"4\" fill=\"{}\"/>\n",
                       kWidth - kRight + 14, legend - 6, of);
    out +=
        text_at(kWidth - kRight + 34, legend, "start",
                fmt::format("{}{} {:.3f}", escaped(curve.name), kind, curve.points.back().second));
    legend += 18;
  };
  for (const LossCurve& curve : curves) {
    if (curve.points.empty()) continue;
    if (&curve == curves.data()) {
      out += line_of(axes, thinned(curve.points, columns), "#c8c8c8", 1);
      const LossCurve mean = {curve.name, running_mean(curve.points)};
      if (mean.points.empty()) continue;
      out += line_of(axes, thinned(mean.points, columns), "#202020", 1.5);
      name(mean, "#202020", "");
    } else {
      const char* of = kColours[colour++ % std::size(kColours)];
      out += line_of(axes, thinned(curve.points, columns), of, 1.5);
      name(curve, of, ", held out");
    }
  }
  return out + "</svg>\n";
}

}  // namespace drover
