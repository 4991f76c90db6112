#include "text/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <queue>

#include "base/error.h"
#include "text/byte_alphabet.h"
#include "text/token_index.h"

namespace drover {
namespace {

uint64_t pair_of(Token left, Token right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}
Token left_of(uint64_t pair) { return static_cast<Token>(pair >> 32); }
Token right_of(uint64_t pair) { return static_cast<Token>(pair & 0xFFFFFFFF); }

// A pair that waits to be joined. Its count may have fallen since.
struct Candidate {
  int64_t count;
  uint64_t pair;
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

struct PairHash {
  size_t operator()(uint64_t pair) const { return mix_bits(pair); }
};

// All words as tokens, and where each pair of neighbours stands.
class Corpus {
 public:
  void add(std::string_view word, int64_t count, const std::array<Token, 256>& byte_tokens) {
    words_.push_back({tokens_.size(), static_cast<uint32_t>(word.size()), count});
    for (const char byte : word) tokens_.push_back(byte_tokens[static_cast<unsigned char>(byte)]);
    const Token* t = tokens_.data() + words_.back().begin;
    for (size_t i = 0; i + 1 < word.size(); ++i) change(t[i], t[i + 1], count, words_.size() - 1);
  }

  // Makes every pair a candidate.
  void collect(std::priority_queue<Candidate>& queue) const {
    for (const auto& [pair, place] : pairs_) queue.push({place.count, pair});
  }

  // How often the pair stands now.
  int64_t count(uint64_t pair) const {
    const auto found = pairs_.find(pair);
    return found == pairs_.end() ? 0 : found->second.count;
  }

  // Joins the pair wherever it stands, leftmost first; pairs that this makes become candidates.
  void join(uint64_t pair, Token result, std::priority_queue<Candidate>& queue) {
    made_.clear();
    const std::vector<uint32_t> words = std::move(pairs_.find(pair)->second.words);
    for (const uint32_t word : words) join_in(word, left_of(pair), right_of(pair), result);
    pairs_.erase(pair);
    // A pair is made in many words; one candidate with the count of all is enough.
    std::sort(made_.begin(), made_.end());
    made_.erase(std::unique(made_.begin(), made_.end()), made_.end());
    for (const uint64_t other : made_) {
      if (const int64_t n = count(other); n > 0) queue.push({n, other});
    }
  }

  int64_t total_tokens() const {
    int64_t out = 0;
    for (const Word& word : words_) out += word.count * word.length;
    return out;
  }

 private:
  struct Word {
    size_t begin;     // in tokens_
    uint32_t length;  // tokens; shrinks
    int64_t count;
  };
  struct Place {
    int64_t count = 0;
    std::vector<uint32_t> words;  // those that have it, and some that had it
  };

  void change(Token left, Token right, int64_t by, size_t word) {
    Place& place = pairs_[pair_of(left, right)];
    place.count += by;
    const auto id = static_cast<uint32_t>(word);
    if (by > 0 && (place.words.empty() || place.words.back() != id)) place.words.push_back(id);
  }

  void join_in(uint32_t id, Token left, Token right, Token result) {
    Word& word = words_[id];
    Token* t = tokens_.data() + word.begin;
    uint32_t n = 0;  // tokens that are done; what is to the left of t[i] is t[n - 1]
    for (uint32_t i = 0; i < word.length;) {
      if (i + 1 == word.length || t[i] != left || t[i + 1] != right) {
        t[n++] = t[i++];
        continue;
      }
      if (n > 0) {
        change(t[n - 1], left, -word.count, id);
        change(t[n - 1], result, word.count, id);
        made_.push_back(pair_of(t[n - 1], result));
      }
      if (i + 2 < word.length) {
        change(right, t[i + 2], -word.count, id);
        change(result, t[i + 2], word.count, id);
        made_.push_back(pair_of(result, t[i + 2]));
      }
      t[n++] = result;
      i += 2;
    }
    word.length = n;
  }

  std::vector<Token> tokens_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Place, PairHash> pairs_;
  std::vector<uint64_t> made_;
};

std::optional<Token> find_token(const Vocabulary& v, std::string_view text) {
  const auto found = std::find(v.tokens.begin(), v.tokens.end(), text);
  if (found == v.tokens.end()) return std::nullopt;
  return static_cast<Token>(found - v.tokens.begin());
}

}  // namespace

BpeTrainer::BpeTrainer(BpeTraining training) : training_(std::move(training)) {
  const auto& special = training_.special;
  const int64_t least = 256 + static_cast<int64_t>(special.size());
  if (training_.size < least || training_.size > static_cast<int64_t>(kMaxVocabularySize)) {
    throw_error(ErrorKind::kUsage, "vocabulary: expected {} to {} tokens, got {}", least,
                kMaxVocabularySize, training_.size);
  }
  for (auto name = special.begin(); name != special.end(); ++name) {
    const bool twice = std::find(special.begin(), name, *name) != name;
    if (name->size() < 2 || name->size() > kMaxSpecialTextLength || twice) {
      throw_error(ErrorKind::kUsage,
                  "control token: expected 2 to {} bytes that no other has, got \"{}\"",
                  kMaxSpecialTextLength, printable(*name));
    }
  }
}

void BpeTrainer::add(std::string_view text) {
  bytes_ += static_cast<int64_t>(text.size());
  for (size_t begin = 0; begin < text.size();) {
    const size_t piece = piece_end(training_.pre, text, begin);
    for (size_t end; begin < piece; begin = end) {
      end = std::min(piece, begin + kMaxWordBytes);
      const std::string_view word = text.substr(begin, end - begin);
      const auto found = words_.find(word);
      if (found != words_.end()) {
        ++found->second;
        continue;
      }
      distinct_bytes_ += word.size();
      if (distinct_bytes_ > kMaxDistinctBytes) {
        throw Error(ErrorKind::kLimit,
                    fmt::format("text: expected at most {} bytes of distinct words, got more",
                                kMaxDistinctBytes),
                    "train on a part of it");
      }
      words_.emplace(word, 1);
    }
  }
}

TrainedBpe BpeTrainer::train(const Progress& progress) const {
  TrainedBpe out;
  Vocabulary& v = out.vocabulary;
  v.source = "trained";
  v.pre = training_.pre;
  std::array<Token, 256> byte_tokens{};
  for (const int16_t byte : kCodePointToByte) {
    if (byte < 0) continue;
    byte_tokens[static_cast<size_t>(byte)] = static_cast<Token>(v.tokens.size());
    v.tokens.emplace_back(1, static_cast<char>(byte));
  }

  Corpus corpus;
  for (const auto& [word, count] : words_) {
    corpus.add(word, count, byte_tokens);
    out.words += count;
  }
  std::priority_queue<Candidate> queue;
  corpus.collect(queue);

  std::unordered_map<std::string, Token> known;  // tokens that merges made
  const size_t size = static_cast<size_t>(training_.size) - training_.special.size();
  const int64_t least = std::max<int64_t>(training_.min_frequency, 1);
  while (v.tokens.size() < size && !queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const int64_t count = corpus.count(best.pair);
    if (count < least) continue;
    if (count != best.count) {  // it has fallen: its turn comes later
      if (count < best.count) queue.push({count, best.pair});
      continue;
    }
    const Token left = left_of(best.pair), right = right_of(best.pair);
    const std::string text =
        v.tokens[static_cast<size_t>(left)] + v.tokens[static_cast<size_t>(right)];
    if (std::find(training_.special.begin(), training_.special.end(), text) !=
        training_.special.end()) {
      continue;  // no text may make a control token
    }
    const auto [made, is_new] = known.emplace(text, static_cast<Token>(v.tokens.size()));
    if (is_new) v.tokens.push_back(text);
    // Two pairs may make one token; a pair that comes back is the same merge.
    const std::pair merge(left, right);
    if (is_new || std::find(v.merges.begin(), v.merges.end(), merge) == v.merges.end()) {
      v.merges.push_back(merge);
    }
    corpus.join(best.pair, made->second, queue);
    if (progress) progress(v.tokens.size(), size);
  }

  v.kinds.assign(v.tokens.size(), TokenKind::kNormal);
  for (const std::string& name : training_.special) {
    v.tokens.push_back(name);
    v.kinds.push_back(TokenKind::kControl);
  }
  v.bos = find_token(v, "<|begin_of_text|>");
  v.eos = find_token(v, "<|end_of_text|>");
  v.pad = find_token(v, "<|finetune_right_pad|>");
  v.add_bos = v.bos.has_value();
  find_stops(v);
  out.bytes = bytes_;
  out.tokens = corpus.total_tokens();
  out.distinct_words = static_cast<int64_t>(words_.size());
  return out;
}

}  // namespace drover
