#include "cli/quantities.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/error.h"

namespace drover {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// A number and the unit behind it; the amount in ones, at least 1 and well inside 64 bits.
template <typename Unit>
std::optional<int64_t> parse(std::string_view text, Unit unit) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc()) return std::nullopt;
  const std::optional<double> factor = unit(lower(std::string_view(next, end)));
  if (!factor) return std::nullopt;
  const double amount = number * *factor;
  if (!(amount >= 1) || amount > 0x1p53 || amount != std::floor(amount)) return std::nullopt;
  return static_cast<int64_t>(amount);
}

}  // namespace

int64_t parse_tokens(std::string_view what, std::string_view text) {
  const auto tokens = parse(text, [](const std::string& unit) -> std::optional<double> {
    if (unit.empty()) return 1;
    if (unit == "k") return 1024;
    if (unit == "m") return 1e6;
    return std::nullopt;
  });
  if (!tokens) {
    throw_error(ErrorKind::kUsage, "{}: expected tokens such as 8192, 8K or 1M, got {}", what,
                printable(text));
  }
  return *tokens;
}

std::vector<int64_t> parse_token_list(std::string_view what, std::string_view text) {
  std::vector<int64_t> out;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    out.push_back(parse_tokens(what, text.substr(at, comma - at)));
    at = comma + 1;
  }
  return out;
}

int64_t parse_bytes(std::string_view what, std::string_view text) {
  const auto bytes = parse(text, [](std::string unit) -> std::optional<double> {
    bool decimal = false;
    if (unit.ends_with("ib")) {
      unit.resize(unit.size() - 2);
      if (unit.empty()) return std::nullopt;
    } else if (unit.ends_with("b")) {
      unit.pop_back();
      decimal = true;
    }
    const double step = decimal ? 1000 : 1024;
    constexpr std::string_view kUnits[] = {"", "k", "m", "g", "t"};
    double factor = 1;
    for (const std::string_view known : kUnits) {
      if (unit == known) return factor;
      factor *= step;
    }
    return std::nullopt;
  });
  if (!bytes) {
    throw_error(ErrorKind::kUsage, "{}: expected bytes such as 64G, 64GB or 512M, got {}", what,
                printable(text));
  }
  return *bytes;
}

std::string bytes_text(int64_t bytes) {
  const char* units[] = {"B", "KB", "MB", "GB", "TB", "PB"};
  double amount = static_cast<double>(bytes);
  int unit = 0;
  for (; amount >= 1000 && unit < 5; ++unit) amount /= 1000;
  return fmt::format("{:.{}f} {}", amount, unit == 0 ? 0 : amount < 10 ? 2 : 1, units[unit]);
}

std::string grouped(int64_t number) {
  std::string out = std::to_string(number);
  for (auto at = static_cast<int64_t>(out.size()) - 3; at > 0; at -= 3) {
    out.insert(static_cast<size_t>(at), ",");
  }
  return out;
}

std::string duration_text(double seconds) {
  if (seconds < 1) return fmt::format("{:.3g} ms", 1000 * seconds);
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 2 * 3600) return fmt::format("{:.0f} min", seconds / 60);
  if (seconds < 3 * 86400) return fmt::format("{:.1f} h", seconds / 3600);
  return fmt::format("{:.0f} days", seconds / 86400);
}

}  // namespace drover
