#include "text/special_matcher.h"

#include <algorithm>

namespace drover {

SpecialMatcher::SpecialMatcher(const Vocabulary& vocabulary, TokenKind kind) {
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.kinds[i] != kind) continue;
    texts_.emplace_back(vocabulary.tokens[i], static_cast<Token>(i));
    starts_[static_cast<unsigned char>(vocabulary.tokens[i][0])] = true;
  }
  std::sort(texts_.begin(), texts_.end());
}

SpecialMatcher::Match SpecialMatcher::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    // Byte by byte the range of texts that agree so far narrows; a text that ends is its first
    // element, and a match. Texts are short (kMaxSpecialTextLength), so the walk is too.
    auto low = texts_.begin(), high = texts_.end();
    Match best{text.size(), text.size(), -1};
    for (size_t length = 1; low != high && begin + length <= text.size(); ++length) {
      const size_t k = length - 1;
      const auto byte = static_cast<unsigned char>(text[begin + k]);
      const auto at = [k](const auto& entry) {
        return k < entry.first.size() ? static_cast<unsigned char>(entry.first[k]) : -1;
      };
      low = std::partition_point(low, high, [&](const auto& entry) { return at(entry) < byte; });
      high = std::partition_point(low, high, [&](const auto& entry) { return at(entry) == byte; });
      if (low != high && low->first.size() == length) best = {begin, begin + length, low->second};
    }
    if (best.token >= 0) return best;
  }
  return {text.size(), text.size(), -1};
}

Token SpecialMatcher::exactly(std::string_view text) const {
  const auto it = std::lower_bound(texts_.begin(), texts_.end(), std::pair{text, Token{-1}});
  return it != texts_.end() && it->first == text ? it->second : -1;
}

}  // namespace drover
