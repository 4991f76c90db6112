// What generators share: settings and files, draws, and questions with answers as an example.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/json.h"
#include "image/image.h"
#include "train/example.h"
#include "train/random.h"
#include "train/sources.h"

namespace drover {

// What all of them are: a name, what they were made for, and the files that they read.
class Generator : public Source {
 public:
  std::string_view name() const override { return name_; }
  SourceFacts facts() const override { return facts_; }

 protected:
  // kBadData names a setting that is not among `known`; name, licence, origin and weight, which all
  // may have, need not be named. weight: what an answer's tokens count, unless the settings say so.
  Generator(const boost::json::object& settings, const SourceContext& context,
            std::initializer_list<std::string_view> known, double weight = 1);

  int64_t size_setting(std::string_view key, int64_t otherwise, int64_t least, int64_t most) const;
  double share_setting(std::string_view key, double otherwise) const;
  std::vector<std::string_view> names_setting(std::string_view key) const;
  std::string_view name_setting(std::string_view key) const { return settings_.required_text(key); }

  // A file by its name in the recipe, unpacked if it is gzip; noted for the manifest.
  std::string read(std::string_view file);
  // All files of a list of names.
  std::vector<std::string> read_all(std::string_view key);
  // Whether there is such a file.
  bool has_file(std::string_view file) const;

  const SourceContext context_;

 private:
  JsonFields settings_;  // of the call that makes it
  std::string name_;
  SourceFacts facts_;

 protected:
  const float weight_;
};

// The numbers of an example. What is held out has others, so that the same seed never asks for what
// it taught.
inline Random draws(const SourceContext& context, uint64_t seed, uint64_t index) {
  return Random(context.held_out ? ~seed : seed, index);
}

template <typename T>
const T& pick(Random& random, std::span<const T> things) {
  return things[static_cast<size_t>(random.below(static_cast<int64_t>(things.size())))];
}
template <typename T>
const T& pick(Random& random, const std::vector<T>& things) {
  return pick(random, std::span<const T>(things));
}
template <typename T, size_t N>
const T& pick(Random& random, const T (&things)[N]) {
  return pick(random, std::span<const T>(things));
}

template <typename T>
void shuffle(Random& random, std::vector<T>& things) {
  for (size_t i = things.size(); i > 1; --i) {
    std::swap(things[i - 1], things[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
  }
}

// "a cat", "an owl"
std::string with_article(std::string_view noun);
// "The dog" from "the dog"
std::string capitalised(std::string_view text);
// "a", "a and b", "a, b and c"
std::string listed(std::span<const std::string> things);

struct Turn {
  std::string question;
  std::string answer;
  // Learnt letter by letter, whatever longer tokens there are: a picture shows letters, and what is
  // learnt of each of them reads words that were never shown.
  bool spelled = false;
};

// The conversation in the model's chat format; pictures stand before the first question. Answers
// and the tokens that end them are learnt, with this weight. Turns at the end that do not fit
// `length` are left out; kBadData if the first does not fit either.
Example dialogue(const SourceContext& context, std::span<const Image> pictures,
                 std::span<const Turn> turns, int64_t length, float weight = 1);

// Appends tokens that all have one weight.
void append(Example& example, std::span<const Token> tokens, float weight);

// The token that ends a turn.
Token end_of_turn(const SourceContext& context);

// Running text for others to hide things in. Tokenised once; takes 4 bytes a token. Immutable.
class RunningText {
 public:
  // Of these texts, or, if there are none, sentences that are made up here (eval/needle_prompt.h).
  // Each text's last tenth is what is held out.
  RunningText(std::span<const std::string> texts, const SourceContext& context);

  // So many tokens from some place on; from the start again where the text ends.
  std::vector<Token> window(Random& random, int64_t count) const;

 private:
  std::vector<Token> tokens_;
};

}  // namespace drover
