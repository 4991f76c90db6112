#include "eval/needle_task.h"

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"

namespace drover {
namespace {

struct KindName {
  NeedleKind kind;
  std::string_view name;
};
constexpr KindName kKinds[] = {
    {NeedleKind::kControl, "control"},
    {NeedleKind::kSingle, "single"},
    {NeedleKind::kMultiKey, "multi-key"},
    {NeedleKind::kMultiValue, "multi-value"},
    {NeedleKind::kNearDuplicate, "near-duplicate"},
    {NeedleKind::kTracking, "variable-tracking"},
    {NeedleKind::kTwoHop, "two-hop"},
};

constexpr std::string_view kBuildings[] = {"lighthouse", "windmill",    "observatory", "bakery",
                                           "boatyard",   "glass house", "courthouse",  "brewery"};
constexpr std::string_view kSides[] = {"Upper", "Lower", "East", "West",
                                       "North", "South", "New",  "Old"};
constexpr std::string_view kStarts[] = {"Tol", "Ard", "Kras", "Lin",  "Bren", "Os",
                                        "Vel", "Mur", "Hal",  "Dren", "Fal",  "Quill"};
constexpr std::string_view kEnds[] = {"men", "vale", "by", "moor", "wick", "stad", "ford", "holm"};
constexpr std::string_view kSyllables[] = {"ka", "mi", "ro", "tu", "ve", "zo", "li", "pa"};

// Draws that are the same with every standard library.
class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}

  template <size_t N>
  std::string_view of(const std::string_view (&words)[N]) {
    return words[below(N)];
  }
  uint64_t below(uint64_t n) { return random_() % n; }

  // Six to eight digits, none like another of this draw.
  std::string number() {
    for (;;) {
      const uint64_t low[] = {100'000, 1'000'000, 10'000'000};
      const uint64_t least = low[below(3)];
      std::string out = std::to_string(least + below(9 * least));
      if (numbers_.insert(out).second) return out;
    }
  }
  // A name that nothing else of this draw has.
  std::string town() {
    for (;;) {
      std::string out = std::string(of(kStarts)) + std::string(of(kEnds));
      if (names_.insert(out).second) return out;
    }
  }
  std::string variable() {
    for (;;) {
      std::string out;
      for (int i = 0; i < 3; ++i) out += of(kSyllables);
      for (char& c : out) c = static_cast<char>(c - 'a' + 'A');
      if (names_.insert(out).second) return out;
    }
  }

 private:
  std::mt19937_64 random_;
  std::set<std::string> numbers_, names_;
};

struct Place {
  std::string_view building;
  std::string town;  // "Tolmen", or "Upper Tolmen"
};

std::string sentence(const Place& place, std::string_view number) {
  return fmt::format("The pass number of the {} in {} is {}.", place.building, place.town, number);
}

std::string question(const Place& place) {
  return fmt::format(
      "What is the pass number of the {} in {}? Answer with the number as it stands in the text.",
      place.building, place.town);
}

double spread(int64_t i, int64_t count) {
  return (static_cast<double>(i) + 0.5) / static_cast<double>(count);
}

NeedleTask::Needle needle_at(const Place& place, std::string_view number, double depth) {
  return {sentence(place, number), depth, question(place)};
}

void add_decoys(NeedleTask& task, Draw& draw, const std::vector<Place>& places) {
  for (size_t i = 0; i < places.size(); ++i) {
    task.decoys.push_back(draw.number());
    const double depth = spread(static_cast<int64_t>(i), static_cast<int64_t>(places.size()));
    task.needles.push_back(needle_at(places[i], task.decoys.back(), depth));
  }
}

}  // namespace

std::string_view needle_kind_name(NeedleKind kind) {
  for (const KindName& known : kKinds) {
    if (known.kind == kind) return known.name;
  }
  return "unknown";
}

NeedleKind needle_kind_from_name(std::string_view name) {
  std::string names;
  for (const KindName& known : kKinds) {
    if (known.name == name) return known.kind;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", known.name);
  }
  throw_error(ErrorKind::kUsage, "kinds: expected {}, got {}", names, printable(name));
}

std::vector<NeedleKind> all_needle_kinds() {
  std::vector<NeedleKind> out;
  for (const KindName& known : kKinds) out.push_back(known.kind);
  return out;
}

NeedleTask make_needle_task(NeedleKind kind, uint64_t seed, double depth, int64_t most) {
  Draw draw(seed * 1000003 + static_cast<uint64_t>(kind));
  NeedleTask task;
  const Place asked{draw.of(kBuildings), draw.town()};
  task.expected = {draw.number()};
  switch (kind) {
    case NeedleKind::kControl:
      task.question = question(asked);
      return task;
    case NeedleKind::kSingle:
      task.needles = {needle_at(asked, task.expected[0], depth)};
      task.question = question(asked);
      return task;
    case NeedleKind::kMultiKey: {
      task.needles = {needle_at(asked, task.expected[0], depth)};
      task.question = question(asked);
      std::vector<Place> others;
      for (int i = 0; i < 7; ++i) others.push_back({draw.of(kBuildings), draw.town()});
      add_decoys(task, draw, others);
      return task;
    }
    case NeedleKind::kMultiValue: {
      constexpr int64_t kValues = 4;
      task.needles = {{sentence(asked, task.expected[0]), depth, ""}};
      for (int64_t i = 1; i < kValues; ++i) {
        task.expected.push_back(draw.number());
        task.needles.push_back({fmt::format("Another pass number of the {} in {} is {}.",
                                            asked.building, asked.town, task.expected.back()),
                                spread(i - 1, kValues - 1), ""});
      }
      task.question = fmt::format(
          "What are all {} pass numbers of the {} in {}? Answer with the numbers as they stand in "
          "the text.",
          kValues, asked.building, asked.town);
      return task;
    }
    case NeedleKind::kNearDuplicate: {
      // One word of three differs: the side of the town, the town, or the building.
      const std::string side(draw.of(kSides));
      const Place there{asked.building, side + " " + asked.town};
      task.needles = {needle_at(there, task.expected[0], depth)};
      task.question = question(there);
      std::vector<Place> others;
      for (const std::string_view other : kSides) {
        if (other != side)
          others.push_back({there.building, fmt::format("{} {}", other, asked.town)});
      }
      for (const std::string_view other : kBuildings) {
        if (other != there.building) others.push_back({other, there.town});
      }
      while (others.size() < 63) {
        others.push_back({there.building, fmt::format("{} {}", side, draw.town())});
      }
      // Fewer are a mixture of all three.
      for (size_t i = others.size() - 1; i > 0; --i)
        std::swap(others[i], others[draw.below(i + 1)]);
      others.resize(static_cast<size_t>(std::clamp<int64_t>(most - 1, 1, 63)));
      add_decoys(task, draw, others);
      return task;
    }
    case NeedleKind::kTracking:
    case NeedleKind::kTwoHop: {
      const int64_t hops = kind == NeedleKind::kTracking ? 4 : 1;
      std::string name = draw.variable();
      task.needles = {
          {fmt::format("The cipher {} stands for {}.", name, task.expected[0]), depth, ""}};
      for (int64_t i = 0; i < hops; ++i) {
        const std::string next = draw.variable();
        task.needles.push_back(
            {fmt::format("The cipher {} stands for the same number as the cipher {}.", next, name),
             spread(i, hops), ""});
        name = next;
      }
      task.question = fmt::format(
          "Which number does the cipher {} stand for? Answer with the number as it stands in the "
          "text.",
          name);
      return task;
    }
  }
  DROVER_CHECK(false);
  return task;
}

double score_answer(const NeedleTask& task, std::string_view answer) {
  const auto digit = [&](size_t i) {
    return i < answer.size() && answer[i] >= '0' && answer[i] <= '9';
  };
  std::set<std::string> said;
  std::string run;
  for (size_t i = 0; i <= answer.size(); ++i) {
    if (digit(i)) {
      run += answer[i];
    } else if (i < answer.size() && answer[i] == ',' && !run.empty() && digit(i + 1) &&
               digit(i + 2) && digit(i + 3) && !digit(i + 4)) {
      // 1,234,567
    } else if (!run.empty()) {
      said.insert(std::move(run));
      run.clear();
    }
  }
  for (const std::string& decoy : task.decoys) {
    if (said.contains(decoy)) return 0;
  }
  const auto found =
      std::count_if(task.expected.begin(), task.expected.end(),
                    [&](const std::string& number) { return said.contains(number); });
  return static_cast<double>(found) / static_cast<double>(task.expected.size());
}

}  // namespace drover
