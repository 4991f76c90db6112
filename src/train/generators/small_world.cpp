// "small_world": talk in plain English about a world small enough to know all of it: who Edge is,
// colours, animals, days, opposites, sums of one digit, and stories whose questions follow from
// what happened in them. What is not in it, Edge says that it does not know.
//
//   stories   0.4   share of conversations that are about a story
//   turns     4     of a conversation, at most
#include <fmt/format.h>

#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/story.h"
#include "train/generators/words.h"

namespace drover {
namespace {

struct Known {
  std::vector<std::string_view> questions;
  std::string_view answer;
};

const std::vector<Known>& about_edge() {
  static const std::vector<Known> known = {
      {{"Who are you?", "What are you?", "Tell me who you are.", "What is your name?",
        "Introduce yourself."},
       "I am Edge, Drover's small model."},
      {{"What can you do?", "What do you know?", "How can you help me?", "What are you good at?"},
       "I can read short words in pictures, name and count coloured shapes, read small bar charts, "
       "name common emoji and clothes, and find numbers in very long texts."},
      {{"Who made you?", "Where do you come from?", "Who taught you?"},
       "The Drover project taught me, on an ordinary computer."},
      {{"What is Drover?", "Tell me about Drover."},
       "Drover is a program that runs, serves, checks and teaches models like me."},
      {{"Are you a person?", "Are you human?", "Are you alive?"},
       "No, I am a small language model."},
      {{"How do you work?", "What are you made of?", "What is inside you?"},
       "I am made of numbers. Eight experts share the work, and each word goes to one of them."},
      {{"Are you big?", "How big are you?", "Are you a large model?"},
       "No, I am small: I fit into a file of less than 24 megabytes."},
      {{"Do you know everything?", "Are you always right?", "Can I trust you?"},
       "No. My world is small, and I make mistakes."},
      {{"Can you see?", "Can you look at pictures?", "Do you have eyes?"},
       "Yes, you can show me a picture and ask about it."},
      {{"Can you remember long texts?", "How much can you read?", "Can you read a long text?"},
       "Yes. I was taught to find a number in a text of millions of words."},
      {{"Hello!", "Hi!", "Hello.", "Hello, Edge!", "Good morning!", "Good evening!", "Hey!"},
       "Hello! What would you like to know?"},
      {{"How are you?", "How are you today?"}, "I am well, thank you."},
      {{"Thank you.", "Thanks!", "Thank you very much.", "Great, thanks."}, "You are welcome."},
      {{"Goodbye.", "Bye!", "See you later.", "Good night."}, "Goodbye!"},
  };
  return known;
}

struct Pair {
  std::string_view a, b;
};
constexpr Pair kOpposites[] = {
    {"big", "small"},  {"hot", "cold"},       {"up", "down"},        {"open", "closed"},
    {"old", "young"},  {"fast", "slow"},      {"high", "low"},       {"full", "empty"},
    {"light", "dark"}, {"wet", "dry"},        {"hard", "soft"},      {"good", "bad"},
    {"long", "short"}, {"left", "right"},     {"early", "late"},     {"near", "far"},
    {"loud", "quiet"}, {"rich", "poor"},      {"strong", "weak"},    {"clean", "dirty"},
    {"happy", "sad"},  {"first", "last"},     {"inside", "outside"}, {"above", "below"},
    {"true", "false"}, {"easy", "difficult"}, {"thick", "thin"},     {"wide", "narrow"},
    {"day", "night"},  {"black", "white"},    {"before", "after"},   {"more", "less"},
};
constexpr Pair kColoured[] = {
    {"grass", "green"},     {"snow", "white"},       {"the sky on a clear day", "blue"},
    {"a banana", "yellow"}, {"coal", "black"},       {"a ripe tomato", "red"},
    {"a carrot", "orange"}, {"chocolate", "brown"},  {"a lemon", "yellow"},
    {"milk", "white"},      {"a frog", "green"},     {"the sun", "yellow"},
    {"blood", "red"},       {"an elephant", "grey"}, {"a flamingo", "pink"},
    {"a plum", "purple"},   {"a raven", "black"},    {"a swan", "white"},
};
constexpr Pair kMixed[] = {
    {"red and yellow", "orange"}, {"blue and yellow", "green"}, {"red and blue", "purple"},
    {"red and white", "pink"},    {"black and white", "grey"},
};
struct Animal {
  std::string_view name, sound, young, home;
  int legs;
};
constexpr Animal kAnimals[] = {
    {"dog", "woof", "puppy", "in a house", 4},     {"cat", "meow", "kitten", "in a house", 4},
    {"cow", "moo", "calf", "on a farm", 4},        {"sheep", "baa", "lamb", "on a farm", 4},
    {"pig", "oink", "piglet", "on a farm", 4},     {"horse", "neigh", "foal", "on a farm", 4},
    {"duck", "quack", "duckling", "on a pond", 2}, {"frog", "croak", "tadpole", "in a pond", 4},
    {"hen", "cluck", "chick", "on a farm", 2},     {"lion", "roar", "cub", "in the grassland", 4},
    {"owl", "hoot", "owlet", "in the forest", 2},  {"goat", "bleat", "kid", "on a farm", 4},
};
struct Legged {
  std::string_view name;
  std::string_view legs;
};
constexpr Legged kLegs[] = {{"spider", "eight"}, {"ant", "six"},    {"bee", "six"},
                            {"bird", "two"},     {"snake", "no"},   {"fish", "no"},
                            {"cat", "four"},     {"horse", "four"}, {"person", "two"},
                            {"beetle", "six"},   {"cow", "four"},   {"crab", "ten"}};
constexpr std::string_view kDays[] = {"Monday", "Tuesday",  "Wednesday", "Thursday",
                                      "Friday", "Saturday", "Sunday"};
constexpr std::string_view kMonths[] = {"January",   "February", "March",    "April",
                                        "May",       "June",     "July",     "August",
                                        "September", "October",  "November", "December"};
constexpr std::string_view kSeasons[] = {"spring", "summer", "autumn", "winter"};
constexpr std::string_view kNumbers[] = {"zero", "one",   "two",   "three", "four", "five",
                                         "six",  "seven", "eight", "nine",  "ten"};
struct Kind {
  std::string_view name;
  std::vector<std::string_view> members;
};
const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {
      {"animal", {"dog", "cat", "horse", "frog", "owl", "mouse", "whale", "bee"}},
      {"fruit", {"apple", "banana", "pear", "plum", "cherry", "lemon", "peach", "grape"}},
      {"vegetable", {"carrot", "potato", "onion", "cabbage", "pea", "turnip", "leek", "bean"}},
      {"tool", {"hammer", "saw", "spade", "axe", "rake", "drill", "chisel", "file"}},
      {"piece of clothing", {"coat", "shirt", "hat", "shoe", "sock", "scarf", "glove", "dress"}},
      {"vehicle", {"car", "bus", "train", "tram", "lorry", "boat", "bicycle", "plane"}},
      {"piece of furniture", {"table", "chair", "bed", "shelf", "desk", "sofa", "bench", "stool"}},
  };
  return all;
}
constexpr std::string_view kUnknown[] = {
    "Who won the race on {}?",         "What is the capital of {}?",
    "Who wrote the song about {}?",    "What does {} cost in the shop?",
    "Who is the king of {}?",          "What will the weather be like in {}?",
    "How many people live in {}?",     "When was the town of {} built?",
    "What did {} have for breakfast?", "What is the phone number of {}?",
};

size_t place_of(Random& random, size_t count) {
  return static_cast<size_t>(random.below(static_cast<int64_t>(count)));
}

// The one after, or before, in a round.
template <size_t N>
Turn neighbour(Random& random, const std::string_view (&round)[N], std::string_view what) {
  const size_t i = place_of(random, N);
  const bool after = random.chance(0.5);
  const std::string_view other = round[after ? (i + 1) % N : (i + N - 1) % N];
  const std::string_view word = after ? "after" : "before";
  return {random.chance(0.5) ? fmt::format("What {} comes {} {}?", what, word, round[i])
                             : fmt::format("Which {} is {} {}?", what, word, round[i]),
          fmt::format("{} comes {} {}.", capitalised(other), word, round[i])};
}

Turn edge(Random& random) {
  const Known& known = pick(random, about_edge());
  return {std::string(pick(random, known.questions)), std::string(known.answer)};
}

Turn sum(Random& random) {
  const int64_t a = random.between(0, 9), b = random.between(0, 9);
  const auto asked = [&](std::string_view sign, std::string_view word, int64_t x, int64_t y,
                         int64_t result) {
    return Turn{random.chance(0.5) ? fmt::format("What is {} {} {}?", x, word, y)
                                   : fmt::format("{} {} {} = ?", x, sign, y),
                fmt::format("{} {} {} is {}.", x, word, y, result)};
  };
  switch (random.below(5)) {
    case 0:
      return asked("+", "plus", a, b, a + b);
    case 1:
      return asked("-", "minus", std::max(a, b), std::min(a, b), std::max(a, b) - std::min(a, b));
    case 2:
      return asked("*", "times", a, b, a * b);
    case 3: {
      if (a == b) return {fmt::format("Which is larger, {} or {}?", a, b), "They are equal."};
      const bool larger = random.chance(0.5);
      return {fmt::format("Which is {}, {} or {}?", larger ? "larger" : "smaller", a, b),
              fmt::format("{} is {}.", larger ? std::max(a, b) : std::min(a, b),
                          larger ? "larger" : "smaller")};
    }
    default:
      return {fmt::format("What number comes after {}?", kNumbers[a]),
              fmt::format("{} comes after {}.", capitalised(kNumbers[a + 1]), kNumbers[a])};
  }
}

Turn opposite(Random& random) {
  const Pair& pair = pick(random, kOpposites);
  const bool turned = random.chance(0.5);
  const std::string_view a = turned ? pair.b : pair.a, b = turned ? pair.a : pair.b;
  return {random.chance(0.5) ? fmt::format("What is the opposite of {}?", a)
                             : fmt::format("Tell me the opposite of {}.", a),
          fmt::format("The opposite of {} is {}.", a, b)};
}

Turn colour(Random& random) {
  if (random.chance(0.3)) {
    const Pair& pair = pick(random, kMixed);
    return {fmt::format("What colour do {} make?", pair.a),
            fmt::format("{} make {}.", capitalised(pair.a), pair.b)};
  }
  const Pair& pair = pick(random, kColoured);
  return {fmt::format("What colour is {}?", pair.a),
          fmt::format("{} is {}.", capitalised(pair.a), pair.b)};
}

Turn animal(Random& random) {
  const Animal& a = pick(random, kAnimals);
  switch (random.below(4)) {
    case 0:
      return {fmt::format("What does {} say?", with_article(a.name)),
              fmt::format("{} says {}.", capitalised(with_article(a.name)), a.sound)};
    case 1:
      return {fmt::format("What is a young {} called?", a.name),
              fmt::format("A young {} is called {}.", a.name, with_article(a.young))};
    case 2:
      return {fmt::format("Where does {} live?", with_article(a.name)),
              fmt::format("{} lives {}.", capitalised(with_article(a.name)), a.home)};
    default: {
      const Legged& legged = pick(random, kLegs);
      return {fmt::format("How many legs does {} have?", with_article(legged.name)),
              fmt::format("{} has {} legs.", capitalised(with_article(legged.name)), legged.legs)};
    }
  }
}

Turn kind(Random& random) {
  const auto& all = kinds();
  const size_t right = place_of(random, all.size());
  const std::string_view member = pick(random, all[right].members);
  const std::string thing = with_article(member);
  if (random.chance(0.4)) {
    return {fmt::format("What is {}?", thing),
            fmt::format("{} is {}.", capitalised(thing), with_article(all[right].name))};
  }
  if (random.chance(0.5)) {
    return {fmt::format("Is {} {}?", thing, with_article(all[right].name)),
            fmt::format("Yes, {} is {}.", thing, with_article(all[right].name))};
  }
  const size_t wrong = (right + 1 + place_of(random, all.size() - 1)) % all.size();
  return {fmt::format("Is {} {}?", thing, with_article(all[wrong].name)),
          fmt::format("No, {} is {}.", thing, with_article(all[right].name))};
}

Turn unknown(Random& random) {
  std::string name;
  for (int64_t i = random.between(2, 3); i > 0; --i) name += pick(random, words::kSyllables);
  return {fmt::format(fmt::runtime(pick(random, kUnknown)), capitalised(name)),
          "I do not know that. My world is small."};
}

Turn any_turn(Random& random) {
  switch (random.below(10)) {
    case 0:
    case 1:
      return edge(random);
    case 2:
    case 3:
      return sum(random);
    case 4:
      return opposite(random);
    case 5:
      return colour(random);
    case 6:
      return animal(random);
    case 7:
      return kind(random);
    case 8:
      return unknown(random);
    default:
      switch (random.below(3)) {
        case 0:
          return neighbour(random, kDays, "day");
        case 1:
          return neighbour(random, kMonths, "month");
        default:
          return neighbour(random, kSeasons, "season");
      }
  }
}

class SmallWorld : public Generator {
 public:
  SmallWorld(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context, {"stories", "turns"}),
        stories_(share_setting("stories", 0.4)),
        turns_(size_setting("turns", 4, 1, 64)) {}

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    std::vector<Turn> turns;
    if (random.chance(stories_)) {
      Story story = make_story(random, context_.held_out);
      turns = std::move(story.questions);
      turns.resize(std::min(turns.size(), static_cast<size_t>(turns_)));
      turns[0].question =
          fmt::format("{}{}{}", story.text, random.chance(0.5) ? "\n\n" : " ", turns[0].question);
    } else {
      const int64_t count = random.between(1, turns_);
      for (int64_t i = 0; i < count; ++i) turns.push_back(any_turn(random));
    }
    return dialogue(context_, {}, turns, length, weight_);
  }

 private:
  double stories_;
  int64_t turns_;
};

}  // namespace

std::unique_ptr<Source> make_small_world(const boost::json::object& settings,
                                         const SourceContext& context) {
  return std::make_unique<SmallWorld>(settings, context);
}

}  // namespace drover
