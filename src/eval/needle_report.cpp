#include "eval/needle_report.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cctype>
#include <cmath>

#include "base/error.h"
#include "image/image.h"
#include "image/png_writer.h"

namespace drover {
namespace {

namespace json = boost::json;

using Colour = std::array<uint8_t, 3>;

constexpr Colour kWhite = {255, 255, 255}, kInk = {32, 32, 32}, kGrey = {225, 225, 225};

// A picture as boxes and labels, which both formats draw.
struct Drawing {
  struct Box {
    int64_t x, y, width, height;
    Colour colour;
    std::string tip;
  };
  struct Label {
    int64_t x, y;  // of its middle; of its left or right end by `anchor`
    std::string text;
    int64_t size;  // pixels of the small font's dots
    char anchor;   // 'm'iddle, 's'tart, 'e'nd
  };
  int64_t width = 0, height = 0;
  std::vector<Box> boxes;
  std::vector<Label> labels;
};

// Letters of 3 x 5 dots, a row an octal digit.
struct Glyph {
  char letter;
  uint16_t dots;
};
constexpr Glyph kFont[] = {
    {'0', 075557}, {'1', 026227}, {'2', 071747}, {'3', 071717}, {'4', 055711}, {'5', 074717},
    {'6', 074757}, {'7', 071222}, {'8', 075757}, {'9', 075717}, {'A', 025755}, {'B', 065656},
    {'C', 034443}, {'D', 065556}, {'E', 074647}, {'F', 074644}, {'G', 034553}, {'H', 055755},
    {'I', 072227}, {'J', 011152}, {'K', 055655}, {'L', 044447}, {'M', 057755}, {'N', 065555},
    {'O', 025552}, {'P', 065644}, {'Q', 025563}, {'R', 065655}, {'S', 034216}, {'T', 072222},
    {'U', 055557}, {'V', 055552}, {'W', 055775}, {'X', 055255}, {'Y', 055222}, {'Z', 071247},
    {'%', 051245}, {'-', 000700}, {'.', 000002}, {',', 000024}, {':', 002020}, {'/', 011244},
    {'(', 024442}, {')', 021112}, {'_', 000007}};

uint16_t dots_of(char letter) {
  const char upper = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  for (const Glyph& glyph : kFont) {
    if (glyph.letter == upper) return glyph.dots;
  }
  return 0;
}

// Red over sand to green, dark enough at both ends to tell without the figures, which stand there.
Colour colour_of(double recall) {
  constexpr Colour kStops[] = {{190, 40, 45}, {246, 226, 150}, {60, 160, 90}};
  const double at = std::clamp(recall, 0.0, 1.0) * 2;
  const int first = at < 1 ? 0 : 1;
  Colour out;
  for (int i = 0; i < 3; ++i) {
    const double share = at - first;
    out[i] = static_cast<uint8_t>(
        std::lround(kStops[first][i] * (1 - share) + kStops[first + 1][i] * share));
  }
  return out;
}

// A control has to be at zero, and then there is nothing to see.
Colour control_colour(double recall) { return recall > 0 ? colour_of(0) : kGrey; }

std::string percent(double share) { return fmt::format("{:.0f}%", 100 * share); }

Drawing draw(const NeedleGrid& grid, const NeedleSummary& summary, const std::string& title) {
  std::vector<int64_t> lengths = grid.lengths;
  std::sort(lengths.begin(), lengths.end());
  const auto columns = static_cast<int64_t>(lengths.size());
  constexpr int64_t kCellWidth = 46, kCellHeight = 24, kLeft = 64, kTop = 34, kGap = 30;
  const int64_t panel_width = kLeft + std::max<int64_t>(columns * kCellWidth, 150) + kGap;
  const int64_t panel_height = 58 + grid.depths * kCellHeight + kGap;
  const auto panels = static_cast<int64_t>(grid.kinds.size());
  const int64_t across = std::min<int64_t>(panels, 3), down = (panels + across - 1) / across;

  Drawing out;
  out.width = std::max<int64_t>(across * panel_width, 14 * static_cast<int64_t>(title.size()));
  out.height = kTop + down * panel_height + 10;
  out.boxes.push_back({0, 0, out.width, out.height, kWhite, ""});
  out.labels.push_back({12, 18, title, 2, 's'});
  for (int64_t p = 0; p < panels; ++p) {
    const NeedleKind kind = grid.kinds[static_cast<size_t>(p)];
    const int64_t left = p % across * panel_width + kLeft;
    const int64_t top = kTop + p / across * panel_height + 52;
    out.labels.push_back({left, top - 36, std::string(needle_kind_name(kind)), 2, 's'});
    for (int64_t c = 0; c < columns; ++c) {
      out.labels.push_back({left + c * kCellWidth + kCellWidth / 2, top - 12,
                            length_text(lengths[static_cast<size_t>(c)]), 2, 'm'});
    }
    for (int64_t d = 0; d < grid.depths; ++d) {
      const int64_t y = top + d * kCellHeight;
      out.labels.push_back({left - 8, y + kCellHeight / 2, percent(grid.depth(d)), 2, 'e'});
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t length = lengths[static_cast<size_t>(c)], x = left + c * kCellWidth;
        const auto found = summary.by_depth.find({kind, length, d});
        const bool known = found != summary.by_depth.end() && found->second.trials > 0;
        const double recall = known ? found->second.recall() : 0;
        const std::string tip =
            known
                ? fmt::format("{}, {} tokens, depth {}: {} of {} trials", needle_kind_name(kind),
                              length, percent(grid.depth(d)), percent(recall), found->second.trials)
                : "not done";
        out.boxes.push_back({x, y, kCellWidth - 1, kCellHeight - 1,
                             !known                         ? kWhite
                             : kind == NeedleKind::kControl ? control_colour(recall)
                                                            : colour_of(recall),
                             tip});
        if (known) {
          out.labels.push_back({x + kCellWidth / 2, y + kCellHeight / 2, percent(recall), 2, 'm'});
        }
      }
    }
  }
  return out;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

std::string hex(const Colour& c) { return fmt::format("#{:02x}{:02x}{:02x}", c[0], c[1], c[2]); }

}  // namespace

std::string length_text(int64_t tokens) {
  if (tokens % 1'000'000 == 0) return fmt::format("{}M", tokens / 1'000'000);
  if (tokens % 1024 == 0) return fmt::format("{}K", tokens / 1024);
  return fmt::format("{}", tokens);
}

json::object needle_json(const NeedleGrid& grid, const NeedleSummary& summary,
                         const NeedleResults& results, const json::object& settings,
                         double threshold) {
  json::array cells;
  for (const NeedleCell& cell : cells_of(grid)) {
    const auto found = results.find(cell);
    if (found == results.end()) continue;
    const NeedleResult& r = found->second;
    cells.push_back({{"kind", needle_kind_name(cell.kind)},
                     {"length", cell.length},
                     {"depth", grid.depth(cell.depth)},
                     {"seed", cell.seed},
                     {"score", r.score},
                     {"answer", printable(r.answer, 1000)},
                     {"prompt_tokens", r.prompt_tokens},
                     {"cached_tokens", r.cached_tokens}});
  }
  json::array kinds;
  for (const auto& [key, mean] : summary.by_kind) {
    kinds.push_back({{"kind", needle_kind_name(key.first)},
                     {"length", key.second},
                     {"trials", mean.trials},
                     {"recall", mean.recall()}});
  }
  json::array lengths;
  for (const auto& [length, mean] : summary.by_length) {
    lengths.push_back({{"length", length}, {"trials", mean.trials}, {"recall", mean.recall()}});
  }
  return {{"settings", settings},
          {"lengths", lengths},
          {"kinds", kinds},
          {"control", {{"trials", summary.control.trials}, {"recall", summary.control.recall()}}},
          {"threshold", threshold},
          {"reached", reaches(summary, threshold)},
          {"cells", cells}};
}

std::string needle_csv(const NeedleGrid& grid, const NeedleSummary& summary) {
  std::string out = "kind,length,depth,trials,recall\n";
  for (const auto& [key, mean] : summary.by_depth) {
    const auto& [kind, length, depth] = key;
    out += fmt::format("{},{},{:.4f},{},{:.4f}\n", needle_kind_name(kind), length,
                       grid.depth(depth), mean.trials, mean.recall());
  }
  return out;
}

std::string needle_svg(const NeedleGrid& grid, const NeedleSummary& summary,
                       const std::string& title) {
  const Drawing drawing = draw(grid, summary, title);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" font-family=\"sans-serif\" fill=\"{2}\">\n",
      drawing.width, drawing.height, hex(kInk));
  for (const Drawing::Box& box : drawing.boxes) {
    out += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"", box.x,
                       box.y, box.width, box.height, hex(box.colour));
    out += box.tip.empty() ? "/>\n" : fmt::format("><title>{}</title></rect>\n", escaped(box.tip));
  }
  for (const Drawing::Label& label : drawing.labels) {
    const char* anchor = label.anchor == 'm' ? "middle" : label.anchor == 's' ? "start" : "end";
    out +=
        fmt::format("<text x=\"{}\" y=\"{}\" font-size=\"{}\" text-anchor=\"{}\">{}</text>\n",
                    label.x, label.y + 2 * label.size, 6 * label.size, anchor, escaped(label.text));
  }
  return out + "</svg>\n";
}

void write_needle_png(const std::filesystem::path& path, const NeedleGrid& grid,
                      const NeedleSummary& summary, const std::string& title) {
  const Drawing drawing = draw(grid, summary, title);
  Image image{drawing.width, drawing.height,
              std::vector<uint8_t>(static_cast<size_t>(drawing.width * drawing.height * 3), 255)};
  const auto fill = [&](int64_t x, int64_t y, int64_t width, int64_t height, const Colour& colour) {
    for (int64_t row = std::max<int64_t>(y, 0); row < std::min(y + height, image.height); ++row) {
      for (int64_t col = std::max<int64_t>(x, 0); col < std::min(x + width, image.width); ++col) {
        std::copy(colour.begin(), colour.end(), image.row(row) + 3 * col);
      }
    }
  };
  for (const Drawing::Box& box : drawing.boxes) {
    fill(box.x, box.y, box.width, box.height, box.colour);
  }
  for (const Drawing::Label& label : drawing.labels) {
    const int64_t size = label.size, advance = 4 * size;
    const int64_t width = advance * static_cast<int64_t>(label.text.size()) - size;
    int64_t x = label.anchor == 's' ? label.x : label.x - (label.anchor == 'm' ? width / 2 : width);
    for (const char letter : label.text) {
      const uint16_t dots = dots_of(letter);
      for (int row = 0; row < 5; ++row) {
        for (int col = 0; col < 3; ++col) {
          if ((dots >> (14 - 3 * row - col) & 1) == 0) continue;
          fill(x + col * size, label.y + row * size - 5 * size / 2, size, size, kInk);
        }
      }
      x += advance;
    }
  }
  write_png(path, image.rgb.data(), image.width, image.height);
}

}  // namespace drover
