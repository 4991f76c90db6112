#include "train/generators/needle_sentences.h"

#include <fmt/format.h>

#include <set>

#include "train/generators/generator.h"
#include "train/generators/words.h"

namespace drover {
namespace {

constexpr std::string_view kBuildings[] = {"mill",   "inn",     "chapel",  "depot",  "castle",
                                           "school", "harbour", "theatre", "studio", "shop"};
constexpr std::string_view kItems[] = {"parcel", "room",  "order", "ticket",
                                       "locker", "wagon", "file"};
constexpr std::string_view kAttributes[] = {"number", "code",   "secret number", "price",
                                            "weight", "length", "pass number",   "sign"};

// {key}, {attribute} and {value} are filled in; {Key} begins a sentence.
constexpr std::string_view kSentences[] = {
    "The {attribute} of {key} is {value}.",
    "Remember that the {attribute} of {key} is {value}.",
    "{Key} has the {attribute} {value}.",
    "For {key}, the {attribute} is {value}.",
    "Note for later: {key}, {attribute} {value}.",
    "Everybody here knows that {key} has the {attribute} {value}.",
    "They wrote down that the {attribute} of {key} was {value}.",
    "{key}: {attribute} = {value}",
};
constexpr std::string_view kQuestions[] = {
    "What is the {attribute} of {key}?", "Which {attribute} does {key} have?",
    "Tell me the {attribute} of {key}.", "What does the text say of the {attribute} of {key}?",
    "{Key}: which {attribute}?",
};
constexpr std::string_view kEndings[] = {"", "", " Answer with it alone.",
                                         " Answer with the {attribute} as it stands in the text."};

std::string filled(std::string_view form, std::string_view key, std::string_view attribute,
                   std::string_view value) {
  std::string out;
  for (size_t at = 0; at < form.size(); ++at) {
    if (form[at] != '{') {
      out += form[at];
      continue;
    }
    const size_t end = form.find('}', at);
    const std::string_view name = form.substr(at + 1, end - at - 1);
    out += name == "Key" ? capitalised(key)
                         : std::string(name == "key"     ? key
                                       : name == "value" ? value
                                                         : attribute);
    at = end;
  }
  return out;
}

std::string made_up_name(Random& random) {
  std::string out;
  const int64_t count = random.between(2, 3);
  for (int64_t i = 0; i < count; ++i) out += pick(random, words::kSyllables);
  return capitalised(out);
}

// A key in parts, each of which can be drawn anew.
class Key {
 public:
  explicit Key(Random& random) : form_(random.below(4)) {
    for (size_t i = 0; i < 3; ++i) draw(random, i);
  }
  void change(Random& random) { draw(random, static_cast<size_t>(random.below(3))); }

  std::string_view attribute() const { return parts_[2]; }
  std::string text() const {
    switch (form_) {
      case 0:
        return fmt::format("the {} in {}", parts_[0], parts_[1]);
      case 1:
        return fmt::format("{} {}", parts_[0], parts_[1]);
      case 2:
        return fmt::format("the {} {}", parts_[0], parts_[1]);
      default:
        return fmt::format("{} {}", parts_[0], parts_[1]);
    }
  }

 private:
  void draw(Random& random, size_t part) {
    if (part == 2) {
      parts_[2] = pick(random, kAttributes);
    } else if (form_ == 0) {
      parts_[part] = part == 0 ? std::string(pick(random, kBuildings)) : made_up_name(random);
    } else if (form_ == 1) {
      parts_[part] = part == 0 ? std::string(pick(random, words::kNames)) : made_up_name(random);
    } else if (form_ == 2) {
      parts_[part] = part == 0 ? pick(random, words::kQualities) : pick(random, words::kThings);
    } else {
      parts_[part] = part == 0
                         ? std::string(pick(random, kItems))
                         : fmt::format("{}-{}", random.between(10, 999), random.between(10, 999));
    }
  }

  int64_t form_;
  std::string parts_[3];
};

std::string letters(Random& random, int64_t count) {
  std::string out;
  for (int64_t i = 0; i < count; ++i) out += static_cast<char>('A' + random.below(26));
  return out;
}

std::string made_up_value(Random& random) {
  if (random.chance(0.15)) {
    return fmt::format("{}-{}-{}", letters(random, 2), random.between(10, 99), letters(random, 2));
  }
  if (random.chance(0.1))
    return fmt::format("{} {}", pick(random, words::kQualities), pick(random, words::kThings));
  int64_t least = 100;
  for (int64_t digits = random.between(3, 9); digits > 3; --digits) least *= 10;
  return std::to_string(random.between(least, 10 * least - 1));
}

}  // namespace

std::vector<HiddenFact> hidden_facts(Random& random, int64_t count, int64_t alike) {
  std::vector<HiddenFact> out;
  std::set<std::string> known;
  Key first(random);
  while (std::ssize(out) < count) {
    const bool begins = std::ssize(out) % alike == 0;
    if (begins) first = Key(random);
    Key key = first;
    if (!begins) key.change(random);
    const std::string text = key.text();
    if (!known.insert(fmt::format("{} {}", key.attribute(), text)).second) continue;
    std::string value;
    do {
      value = made_up_value(random);
    } while (text.find(value) != std::string::npos);
    const std::string question =
        fmt::format("{}{}", pick(random, kQuestions), pick(random, kEndings));
    out.push_back({filled(pick(random, kSentences), text, key.attribute(), value),
                   filled(question, text, key.attribute(), value), value,
                   filled("The {attribute} of {key} is {value}.", text, key.attribute(), value)});
  }
  return out;
}

}  // namespace drover
