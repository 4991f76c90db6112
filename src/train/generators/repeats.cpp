// "repeats": random tokens, and later the same again, too far apart for local attention. What has
// to be learnt is to look for the last time that one was here and to say what came then: all later
// finding rests on it (research/needle-pilot).
//
//   chunk     512   the two begin at least so far apart
//   tokens    0     of a document, at most; 0: as long as examples may be. Short ones come first in
//                   a training: what is far away among 1,000 tokens is hard to find by accident
//   symbols   0     how many different tokens are drawn from; 0: all that are text
#include "base/error.h"
#include "train/generators/generator.h"
#include "train/generators/generators.h"

namespace drover {
namespace {

class Repeats : public Generator {
 public:
  Repeats(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context, {"chunk", "tokens", "symbols"}),
        chunk_(size_setting("chunk", 512, 1, 1 << 20)),
        tokens_(size_setting("tokens", 0, 0, 1 << 20)),
        symbols_(text_tokens(*context.tokenizer)) {
    const auto all = static_cast<int64_t>(symbols_.size());
    const int64_t count = size_setting("symbols", 0, 0, all);
    if (count == 0) return;
    // The same ones for every seed, from all over the vocabulary.
    Random random(0, 0);
    shuffle(random, symbols_);
    symbols_.resize(static_cast<size_t>(count));
  }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    if (tokens_ > 0) length = std::min(length, tokens_);
    const int64_t longest = length - chunk_;
    if (longest < 8) {
      throw_error(ErrorKind::kBadData,
                  "source of kind 'repeats': length: expected at least chunk + 8 = {}, got {}",
                  chunk_ + 8, length);
    }
    Random random = draws(context_, seed, index);
    const int64_t again = random.between(std::max<int64_t>(8, std::min(longest, length / 2) / 2),
                                         std::min(longest, length / 2));
    Example out;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t copied = i - (length - again);
      out.tokens.push_back(copied >= 0 ? out.tokens[static_cast<size_t>(copied)]
                                       : pick(random, symbols_));
      // Which one comes first again cannot be known.
      out.weights.push_back(copied > 0 ? weight_ : 0.0f);
    }
    return out;
  }

 private:
  static std::vector<Token> text_tokens(const Tokenizer& tokenizer) {
    std::vector<Token> out;
    for (Token t = 0; t < tokenizer.size(); ++t) {
      if (!tokenizer.is_control(t) && !tokenizer.token_bytes(t).empty()) out.push_back(t);
    }
    return out;
  }

  int64_t chunk_, tokens_;
  std::vector<Token> symbols_;
};

}  // namespace

std::unique_ptr<Source> make_repeats(const boost::json::object& settings,
                                     const SourceContext& context) {
  return std::make_unique<Repeats>(settings, context);
}

}  // namespace drover
