// "bars": a bar chart of a few bars with letters under them and values on an axis, and
// questions for them. Held out are combinations of values.
//
//   fonts    [..]  files that FreeType reads
//   least    3     bars of a chart,
//   most     5     at most: few come first in a training
//   turns    3     questions about a chart, at most
//   lists    0     share of charts whose letters or values are all named first
//   printed  0.25  share of charts that have their values written over the bars
//   large    0.1   share of pictures of several tiles
#include <fmt/format.h>

#include <algorithm>

#include "train/generators/font.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/palette.h"

namespace drover {
namespace {

constexpr double kHeldOut = 0.1;
constexpr int64_t kTops[] = {10, 10, 10, 20, 50, 100};

struct Bar {
  char label = 'A';
  int64_t level = 0;  // tenths of the axis
  size_t colour = 0;  // of named_colours()
};

struct Chart {
  std::vector<Bar> bars;
  int64_t top = 10;  // where the axis ends

  int64_t value(const Bar& bar) const { return bar.level * top / 10; }
};

class Bars : public Generator {
 public:
  Bars(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context,
                  {"fonts", "least", "most", "turns", "lists", "printed", "large"}),
        least_(size_setting("least", 3, 1, kMost)),
        most_(size_setting("most", kMost, least_, kMost)),
        turns_(size_setting("turns", 3, 1, 64)),
        lists_(share_setting("lists", 0)),
        printed_(share_setting("printed", 0.25)),
        large_(share_setting("large", 0.1)),
        fonts_(read_fonts(read_all("fonts"))) {}

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    const Chart chart = a_chart(random);
    const Image picture = draw(random, chart);
    std::vector<Turn> turns;
    if (lists_ > 0 && random.chance(lists_)) turns.push_back(list(random, chart));
    const int64_t wanted = random.between(1, turns_);
    for (int tries = 0; tries < 20 && static_cast<int64_t>(turns.size()) < wanted; ++tries) {
      const Turn turn = ask(random, chart);
      const bool known = std::any_of(turns.begin(), turns.end(),
                                     [&](const Turn& t) { return t.question == turn.question; });
      if (!known) turns.push_back(turn);
    }
    return dialogue(context_, {&picture, 1}, turns, length, weight_);
  }

 private:
  Chart a_chart(Random& random) const {
    for (;;) {
      Chart out;
      out.top = pick(random, kTops);
      const int64_t count = random.between(least_, most_);
      std::vector<char> labels;
      for (char c = 'A'; c <= 'Z'; ++c) labels.push_back(c);
      // From A on, or any.
      if (random.chance(0.5)) shuffle(random, labels);
      const bool one_colour = random.chance(0.4);
      const size_t colour = a_colour(random);
      std::string levels;
      for (int64_t i = 0; i < count; ++i) {
        out.bars.push_back({labels[static_cast<size_t>(i)], random.between(1, 10),
                            one_colour ? colour : a_colour(random)});
        levels += fmt::format("{} ", out.bars.back().level);
      }
      if (held_out("bars", levels, kHeldOut) == context_.held_out) return out;
    }
  }

  // White and black have the page and its ink.
  static size_t a_colour(Random& random) {
    for (;;) {
      const auto i =
          static_cast<size_t>(random.below(static_cast<int64_t>(named_colours().size())));
      if (named_colours()[i].name != "white" && named_colours()[i].name != "black") return i;
    }
  }

  static Turn list(Random& random, const Chart& chart) {
    const bool letters = random.chance(0.3);
    std::vector<std::string> all;
    for (const Bar& bar : chart.bars) {
      all.push_back(letters ? std::string(1, bar.label) : std::to_string(chart.value(bar)));
    }
    return {fmt::format("List the {} from left to right.", letters ? "bars" : "values"),
            fmt::format("{}", fmt::join(all, ", "))};
  }

  static Turn ask(Random& random, const Chart& chart) {
    const Bar& bar = pick(random, chart.bars);
    const auto same = [&](auto key) {
      return std::count_if(chart.bars.begin(), chart.bars.end(),
                           [&](const Bar& b) { return key(b) == key(bar); });
    };
    switch (random.below(9)) {
      case 0: {
        const bool highest = random.chance(0.5);
        const auto lower = [](const Bar& a, const Bar& b) { return a.level < b.level; };
        const Bar& most = highest ? *std::max_element(chart.bars.begin(), chart.bars.end(), lower)
                                  : *std::min_element(chart.bars.begin(), chart.bars.end(), lower);
        if (std::count_if(chart.bars.begin(), chart.bars.end(),
                          [&](const Bar& b) { return b.level == most.level; }) != 1) {
          break;
        }
        return {fmt::format("Which bar is {}?", highest ? "the highest" : "the lowest"),
                std::string(1, most.label)};
      }
      case 1:
        return {random.chance(0.5) ? "How many bars are there?" : "Count the bars.",
                std::to_string(chart.bars.size())};
      case 2: {
        if (same([](const Bar& b) { return b.level; }) != 1) break;
        return {fmt::format("Which bar has the value {}?", chart.value(bar)),
                std::string(1, bar.label)};
      }
      case 3: {
        const Bar& other = pick(random, chart.bars);
        if (other.level == bar.level) break;
        return {fmt::format("Is {} higher than {}?", bar.label, other.label),
                bar.level > other.level ? "yes" : "no"};
      }
      case 4:
        return {fmt::format("What colour is the bar {}?", bar.label),
                std::string(named_colours()[bar.colour].name)};
      default:
        break;
    }
    return {random.chance(0.7) ? fmt::format("What is the value of {}?", bar.label)
                               : fmt::format("How high is {}?", bar.label),
            std::to_string(chart.value(bar))};
  }

  Image draw(Random& random, const Chart& chart) const {
    Colour page = background_colour(random);
    while (contrast(page, {0, 0, 0}) < 0.7) page = background_colour(random);
    const Colour ink{static_cast<uint8_t>(random.below(50)), static_cast<uint8_t>(random.below(50)),
                     static_cast<uint8_t>(random.below(50))};
    Canvas canvas = blank_canvas(random, context_, large_, page);
    const auto w = static_cast<double>(canvas.width()), h = static_cast<double>(canvas.height());
    const Font& font = pick(random, fonts_);
    const double line = std::max(1.0, 0.012 * h);
    const bool printed = random.chance(printed_);
    const Box plot{0.22 * w, (printed ? 0.16 : 0.08) * h, 0.97 * w, 0.85 * h};
    const double step = plot.width() / static_cast<double>(chart.bars.size());
    // Letters that are as large as there is room for.
    const auto size = [&](std::string_view widest, double room) {
      return std::min(0.125 * std::min(w, h), room / bounds(font.line(widest)).width());
    };
    const double em = size(std::to_string(chart.top), 0.17 * w);
    const double em_over_bars = size(chart.top == 100 ? "100" : "00", 0.9 * step);
    const auto write = [&](std::string_view text, double em, double x, double y, double across) {
      const Path path = font.line(text);
      const Box box = bounds(path);
      canvas.fill(transformed(path, {em, 0, 0, em, x - em * (box.left + across * box.width()),
                                     y - em * (box.top + box.bottom) / 2}),
                  ink);
    };
    // Marks at each quarter, with values at every other.
    const Colour faint{static_cast<uint8_t>((ink.r + 3 * page.r) / 4),
                       static_cast<uint8_t>((ink.g + 3 * page.g) / 4),
                       static_cast<uint8_t>((ink.b + 3 * page.b) / 4)};
    const bool grid = random.chance(0.6);
    for (int mark = 0; mark <= 4; ++mark) {
      const double y = plot.bottom - plot.height() * mark / 4;
      if (grid) canvas.fill_rectangle({plot.left, y - line / 2, plot.right, y + line / 2}, faint);
      canvas.fill_rectangle({plot.left - 0.02 * w, y - line / 2, plot.left, y + line / 2}, ink);
      if (mark % 2 == 0) {
        write(std::to_string(chart.top * mark / 4), em, plot.left - 0.035 * w, y, /*across=*/1);
      }
    }
    const double thick = step * (0.5 + 0.25 * random.uniform());
    for (size_t i = 0; i < chart.bars.size(); ++i) {
      const Bar& bar = chart.bars[i];
      const double x = plot.left + step * (static_cast<double>(i) + 0.5);
      const double y = plot.bottom - plot.height() * static_cast<double>(bar.level) / 10;
      canvas.fill_rectangle({x - thick / 2, y, x + thick / 2, plot.bottom},
                            varied(random, named_colours()[bar.colour].colour));
      write({&bar.label, 1}, em, x, 0.93 * h, /*across=*/0.5);
      if (printed)
        write(std::to_string(chart.value(bar)), em_over_bars, x, y - 0.065 * h, /*across=*/0.5);
    }
    canvas.fill_rectangle({plot.left - line / 2, plot.top, plot.left + line / 2, plot.bottom}, ink);
    canvas.fill_rectangle({plot.left, plot.bottom - line / 2, plot.right, plot.bottom + line / 2},
                          ink);
    canvas.noise(random, random.chance(0.7) ? 0 : random.between(2, 8));
    return canvas.take();
  }

  static constexpr int64_t kMost = 5;

  int64_t least_, most_, turns_;
  double lists_, printed_, large_;
  std::vector<Font> fonts_;
};

}  // namespace

std::unique_ptr<Source> make_bars(const boost::json::object& settings,
                                  const SourceContext& context) {
  return std::make_unique<Bars>(settings, context);
}

}  // namespace drover
