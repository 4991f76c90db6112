// "recall": many keys with their values, one a line, then lines with some of the keys again, whose
// values are learnt. Dense: most of a document's second half teaches.
//
//   weight    4     (each source has it: of an answer's tokens)
//   similar   0.5   share of documents in which keys come in pairs that differ in one part
#include <set>

#include "base/error.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/words.h"

namespace drover {
namespace {

// What keys and values of a document are made of.
enum class Alphabet { kNumbers, kWords, kTokens };
constexpr Alphabet kAlphabets[] = {Alphabet::kNumbers, Alphabet::kWords, Alphabet::kTokens};
constexpr std::string_view kBetween[] = {": ", " = ", " -> ", " is "};

using Parts = std::vector<std::vector<Token>>;

class Recall : public Generator {
 public:
  Recall(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context, {"similar"}, /*weight=*/4),
        similar_(share_setting("similar", 0.5)) {
    for (Token t = 0; t < context.tokenizer->size(); ++t) {
      const std::string_view bytes = context.tokenizer->token_bytes(t);
      // A line break would end the line.
      if (!context.tokenizer->is_control(t) && !bytes.empty() &&
          bytes.find('\n') == std::string_view::npos) {
        symbols_.push_back(t);
      }
    }
  }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    const Tokenizer& tokenizer = *context_.tokenizer;
    const Alphabet keys = pick(random, kAlphabets), values = pick(random, kAlphabets);
    const std::vector<Token> between = tokenizer.encode(pick(random, kBetween));
    const std::vector<Token> end = tokenizer.encode("\n");
    const bool similar = random.chance(similar_);

    Example out;
    struct Pair {
      std::vector<Token> key, value;
    };
    std::vector<Pair> pairs;
    std::set<std::vector<Token>> known;
    Parts last;
    const auto line = [&](const Pair& pair, float weight) {
      append(out, pair.key, 0);
      append(out, between, 0);
      append(out, pair.value, weight);
      append(out, end, weight);
    };
    const auto fits = [&](const Pair& pair, int64_t most) {
      const size_t more = pair.key.size() + between.size() + pair.value.size() + end.size();
      return static_cast<int64_t>(out.tokens.size() + more) <= most;
    };
    for (;;) {
      Parts key = last;
      if (similar && pairs.size() % 2 == 1) {
        const auto changed = static_cast<size_t>(random.below(static_cast<int64_t>(key.size())));
        key[changed] = part(random, keys, changed);
      } else {
        key.clear();
        const int64_t parts = random.between(2, 3);
        for (int64_t i = 0; i < parts; ++i)
          key.push_back(part(random, keys, static_cast<size_t>(i)));
      }
      last = key;
      const Pair pair{joined(key), value(random, values)};
      // The first half is for pairs, and at least one goes in.
      if (!fits(pair, pairs.empty() ? length : length / 2)) break;
      if (!known.insert(pair.key).second) continue;
      line(pair, 0);
      pairs.push_back(pair);
    }
    if (pairs.empty()) {
      throw_error(ErrorKind::kBadData, "source of kind 'recall': length: {} tokens are too few",
                  length);
    }
    for (;;) {
      const Pair& asked = pick(random, pairs);
      if (!fits(asked, length)) break;
      line(asked, weight_);
    }
    return out;
  }

 private:
  std::vector<Token> part(Random& random, Alphabet alphabet, size_t place) const {
    const Tokenizer& tokenizer = *context_.tokenizer;
    const std::string_view space = place == 0 ? "" : " ";
    switch (alphabet) {
      case Alphabet::kNumbers:
        return tokenizer.encode(fmt::format("{}{}", place == 0 ? "" : "-", random.below(1000)));
      case Alphabet::kWords:
        return tokenizer.encode(fmt::format("{}{}", space, word(random)));
      case Alphabet::kTokens:
        return {pick(random, symbols_)};
    }
    return {};
  }
  std::vector<Token> value(Random& random, Alphabet alphabet) const {
    if (alphabet == Alphabet::kNumbers) {
      return context_.tokenizer->encode(std::to_string(random.between(1000, 99'999'999)));
    }
    Parts parts;
    const int64_t count = random.between(1, 3);
    for (int64_t i = 0; i < count; ++i)
      parts.push_back(part(random, alphabet, static_cast<size_t>(i)));
    return joined(parts);
  }
  static std::string_view word(Random& random) {
    switch (random.below(4)) {
      case 0:
        return pick(random, words::kThings);
      case 1:
        return pick(random, words::kPlaces);
      case 2:
        return pick(random, words::kQualities);
      default:
        return pick(random, words::kNames);
    }
  }
  static std::vector<Token> joined(const Parts& parts) {
    std::vector<Token> out;
    for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
    return out;
  }

  double similar_;
  std::vector<Token> symbols_;
};

}  // namespace

std::unique_ptr<Source> make_recall(const boost::json::object& settings,
                                    const SourceContext& context) {
  return std::make_unique<Recall>(settings, context);
}

}  // namespace drover
