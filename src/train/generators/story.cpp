#include "train/generators/story.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>

#include "train/generators/words.h"

namespace drover {
namespace {

constexpr double kHeldOut = 0.1;  // of the pairs of name and thing

struct Person {
  std::string name;
  std::string place;  // "the garden"
};

struct Thing {
  std::string name;  // "red ball"
  std::string kind;  // "ball"
  std::optional<size_t> owner;
  std::string place;  // where it lies, if nobody has it
};

struct World {
  std::vector<Person> people;
  std::vector<Thing> things;

  int64_t owned(size_t person) const {
    return std::count_if(things.begin(), things.end(),
                         [&](const Thing& t) { return t.owner == person; });
  }
};

size_t below(Random& random, size_t n) {
  return static_cast<size_t>(random.below(static_cast<int64_t>(n)));
}

bool kept_back(std::string_view name, std::string_view thing) {
  return held_out("story", fmt::format("{} {}", name, thing), kHeldOut);
}

template <size_t N>
std::vector<std::string> some(Random& random, const std::string_view (&of)[N], int64_t count) {
  std::vector<std::string_view> all(std::begin(of), std::end(of));
  shuffle(random, all);
  return {all.begin(), all.begin() + count};
}

World begin(Random& random, bool held_out) {
  for (;;) {
    World out;
    const auto names = some(random, words::kNames, random.between(2, 3));
    const auto places = some(random, words::kPlaces, static_cast<int64_t>(names.size()));
    const auto things = some(random, words::kThings, random.between(2, 4));
    const auto colours = some(random, words::kColours, static_cast<int64_t>(things.size()));
    for (size_t i = 0; i < names.size(); ++i) out.people.push_back({names[i], "the " + places[i]});
    int64_t unseen = 0;
    for (size_t i = 0; i < things.size(); ++i) {
      const auto owner = below(random, names.size());
      out.things.push_back({colours[i] + " " + things[i], things[i], owner, ""});
      unseen += kept_back(names[owner], things[i]);
    }
    if (held_out ? unseen == 1 : unseen == 0) return out;
  }
}

// One thing that happens, told in a sentence. Empty if it cannot happen now, or, where no pair that
// is held out may come up, if it would make one.
std::string happen(Random& random, World& world, const std::vector<std::string>& places,
                   bool may_be_held_out) {
  const auto who = below(random, world.people.size());
  Person& person = world.people[who];
  Thing& thing = world.things[below(random, world.things.size())];
  const auto may_have = [&](const Person& p) {
    return may_be_held_out || !kept_back(p.name, thing.kind);
  };
  switch (random.below(4)) {
    case 0: {
      const std::string& to = pick(random, places);
      if (to == person.place) return "";
      person.place = to;
      return fmt::format("{} goes to {}.", person.name, to);
    }
    case 1: {
      const auto other = below(random, world.people.size());
      if (other == who || thing.owner != who) return "";
      if (world.people[other].place != person.place || !may_have(world.people[other])) return "";
      thing.owner = other;
      return fmt::format("{} gives the {} to {}.", person.name, thing.name,
                         world.people[other].name);
    }
    case 2: {
      if (thing.owner != who) return "";
      thing.owner.reset();
      thing.place = person.place;
      return fmt::format("{} leaves the {} in {}.", person.name, thing.name, person.place);
    }
    default: {
      if (thing.owner || thing.place != person.place || !may_have(person)) return "";
      thing.owner = who;
      return fmt::format("{} takes the {}.", person.name, thing.name);
    }
  }
}

std::string counted(int64_t n) {
  constexpr std::string_view kNumbers[] = {"no things", "one thing", "two things", "three things",
                                           "four things"};
  return std::string(kNumbers[n]);
}

std::vector<Turn> questions_of(Random& random, const World& world) {
  std::vector<Turn> out;
  for (size_t i = 0; i < world.people.size(); ++i) {
    const Person& person = world.people[i];
    out.push_back({fmt::format("Where is {}?", person.name),
                   fmt::format("{} is in {}.", person.name, person.place)});
    out.push_back({fmt::format("How many things does {} have?", person.name),
                   fmt::format("{} has {}.", person.name, counted(world.owned(i)))});
  }
  for (const Thing& thing : world.things) {
    const std::string where = thing.owner ? world.people[*thing.owner].place : thing.place;
    out.push_back({fmt::format("Where is the {}?", thing.kind),
                   fmt::format("The {} is in {}.", thing.kind, where)});
    out.push_back(
        {fmt::format("What colour is the {}?", thing.kind),
         fmt::format("The {} is {}.", thing.kind, thing.name.substr(0, thing.name.find(' ')))});
    out.push_back({fmt::format("Who has the {}?", thing.kind),
                   thing.owner
                       ? fmt::format("{} has the {}.", world.people[*thing.owner].name, thing.kind)
                       : fmt::format("Nobody has the {}.", thing.kind)});
    // As often yes as no: what nobody has is asked for seldom.
    if (!thing.owner && !random.chance(0.15)) continue;
    const bool has = thing.owner && random.chance(0.5);
    size_t who = has ? *thing.owner : 0;
    while (!has && (who = below(random, world.people.size()), thing.owner == who)) {
    }
    const std::string& name = world.people[who].name;
    out.push_back({fmt::format("Does {} have the {}?", name, thing.kind),
                   has ? fmt::format("Yes, {} has it.", name)
                       : fmt::format("No, {} does not have it.", name)});
  }
  return out;
}

}  // namespace

Story make_story(Random& random, bool held_out) {
  World world = begin(random, held_out);
  std::vector<std::string> places;
  for (const Person& person : world.people) places.push_back(person.place);
  Story out;
  const auto say = [&](const std::string& sentence) {
    if (!sentence.empty()) out.text += (out.text.empty() ? "" : " ") + sentence;
  };
  for (size_t i = 0; i < world.people.size(); ++i) {
    std::vector<std::string> owned;
    for (const Thing& thing : world.things) {
      if (thing.owner == i) owned.push_back(with_article(thing.name));
    }
    const Person& person = world.people[i];
    say(fmt::format("{} is in {}.", person.name, person.place));
    if (!owned.empty()) say(fmt::format("{} has {}.", person.name, listed(owned)));
  }
  const int64_t events = random.between(1, 6);
  for (int64_t told = 0, tried = 0; told < events && tried < 40; ++tried) {
    const std::string sentence = happen(random, world, places, held_out);
    told += !sentence.empty();
    say(sentence);
  }
  out.questions = questions_of(random, world);
  shuffle(random, out.questions);
  return out;
}

}  // namespace drover
