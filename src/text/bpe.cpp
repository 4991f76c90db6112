#include "text/bpe.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <unordered_map>

#include "base/error.h"

namespace drover {
namespace {

constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

// Up to here the whole row of pairs is searched for every merge: it lies in a few cache lines, and
// nearly all pieces of real text are shorter. Measured on Chinese and on random letters, the queue
// below overtakes it at about this length.
constexpr size_t kShortPiece = 128;

// The pairs of a long piece that wait to be joined, by rank, then by position. Many positions share
// a rank, and while one rank is worked off hardly ever a smaller one appears: so positions lie in
// one list for each rank, sorted once when its turn comes, and the heap holds only the ranks. (A
// heap of all pairs took three times as long on 10 MB: every step of it missed the cache.)
class MergeQueue {
 public:
  void push(uint32_t rank, uint32_t position) {
    List& list = list_of(rank, pushed_);
    if (list.open) {
      list.late.push(position);
    } else {
      if (list.positions.empty()) ranks_.push(rank);
      list.positions.push_back(position);
    }
  }

  // Takes the smallest; false when there is none.
  bool pop(uint32_t& rank, uint32_t& position) {
    if (ranks_.empty()) return false;
    rank = ranks_.top();
    List& list = list_of(rank, popped_);
    auto& [positions, next, open, late] = list;
    if (!open && !std::is_sorted(positions.begin(), positions.end())) {
      std::sort(positions.begin(), positions.end());
    }
    open = true;
    if (!late.empty() && (next == positions.size() || late.top() < positions[next])) {
      position = late.top();
      late.pop();
    } else {
      position = positions[next++];
    }
    if (next == positions.size() && late.empty()) {
      lists_.erase(rank);
      ranks_.pop();
      popped_ = {};
      if (pushed_.rank == rank) pushed_ = {};
    }
    return true;
  }

 private:
  template <typename T>
  using Heap = std::priority_queue<T, std::vector<T>, std::greater<T>>;

  struct List {
    std::vector<uint32_t> positions;
    size_t next = 0;      // those before it are taken
    bool open = false;    // its turn has come, positions are sorted
    Heap<uint32_t> late;  // what came after that
  };
  struct Recent {
    uint32_t rank = kNoMerge;
    List* list = nullptr;
  };

  // Neighbouring calls mostly ask for the same list.
  List& list_of(uint32_t rank, Recent& recent) {
    if (rank != recent.rank) recent = {rank, &lists_[rank]};
    return *recent.list;
  }

  std::unordered_map<uint32_t, List> lists_;
  Heap<uint32_t> ranks_;  // of the lists, none of which is empty
  Recent pushed_, popped_;
};

uint64_t pair_of(Token left, Token right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const Vocabulary& vocabulary)
    : index_(vocabulary.tokens, vocabulary.tokens.size()),
      lengths_(vocabulary.tokens.size()),
      ignore_merges_(vocabulary.ignore_merges) {
  const auto& tokens = vocabulary.tokens;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const TokenKind kind = vocabulary.kinds[i];
    if (kind != TokenKind::kNormal && kind != TokenKind::kByte) continue;
    DROVER_CHECK(index_.insert(static_cast<Token>(i)));
    longest_token_ = std::max(longest_token_, tokens[i].size());
    lengths_[i] = static_cast<uint32_t>(tokens[i].size());
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    byte_tokens_[byte] = index_.find({&text, 1});
  }
  size_t slots = 16;
  while (slots < 2 * vocabulary.merges.size()) slots *= 2;
  merges_.assign(slots, {0, kNoMerge, -1});
  std::string joined;
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const auto [left, right] = vocabulary.merges[rank];
    joined = tokens[static_cast<size_t>(left)];
    joined += tokens[static_cast<size_t>(right)];
    auto& slot = const_cast<Merge&>(find(left, right));
    slot = {pair_of(left, right), static_cast<uint32_t>(rank), index_.find(joined)};
    DROVER_CHECK(slot.result >= 0);
  }
}

// The merge of a pair, or the free slot where it would stand.
const Bpe::Merge& Bpe::find(Token left, Token right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t slot = mix_bits(pair ^ hash_seed());; ++slot) {
    const Merge& merge = merges_[slot & (merges_.size() - 1)];
    if (merge.rank == kNoMerge || merge.pair == pair) return merge;
  }
}

void Bpe::encode(std::string_view piece, std::vector<Token>& out) const {
  if (piece.size() == 1) {
    const Token token = byte_tokens_[static_cast<unsigned char>(piece[0])];
    if (token >= 0) out.push_back(token);
    return;
  }
  if (ignore_merges_ && piece.size() <= longest_token_) {
    const Token token = index_.find(piece);
    if (token >= 0) {
      out.push_back(token);
      return;
    }
  }
  piece.size() <= kShortPiece ? encode_short(piece, out) : encode_long(piece, out);
}

void Bpe::encode_short(std::string_view piece, std::vector<Token>& out) const {
  Token tokens[kShortPiece];
  const Merge* merges[kShortPiece];  // of tokens[i] and its right neighbour
  uint32_t ranks[kShortPiece];       // merges[i]->rank; the last one is kNoMerge
  size_t n = 0;
  for (const char byte : piece) {
    const Token token = byte_tokens_[static_cast<unsigned char>(byte)];
    if (token >= 0) tokens[n++] = token;
  }
  if (n == 0) return;
  const auto rank_pair = [&](size_t i) {
    if (i + 1 >= n) {
      ranks[i] = kNoMerge;
      return;
    }
    merges[i] = &find(tokens[i], tokens[i + 1]);
    ranks[i] = merges[i]->rank;
  };
  for (size_t i = 0; i < n; ++i) rank_pair(i);
  while (true) {
    const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + n) - ranks);
    if (ranks[best] == kNoMerge) break;
    tokens[best] = merges[best]->result;
    --n;
    std::copy(tokens + best + 2, tokens + n + 1, tokens + best + 1);
    std::copy(merges + best + 2, merges + n + 1, merges + best + 1);
    std::copy(ranks + best + 2, ranks + n + 1, ranks + best + 1);
    rank_pair(best);
    if (best > 0) rank_pair(best - 1);
  }
  out.insert(out.end(), tokens, tokens + n);
}

void Bpe::encode_long(std::string_view piece, std::vector<Token>& out) const {
  // A token covers as many cells as it has bytes, and stands in its first and its last one: the
  // next token begins after its length, the previous one ends in the cell before. ranks[i] belongs
  // to the pair of the token that begins at i and the next one.
  DROVER_CHECK(piece.size() < kNoMerge);
  std::vector<Token> cells;
  cells.reserve(piece.size());
  for (const char byte : piece) {
    const Token token = byte_tokens_[static_cast<unsigned char>(byte)];
    if (token >= 0) cells.push_back(token);
  }
  std::vector<uint32_t> ranks(cells.size(), kNoMerge);
  MergeQueue queue;
  // Finds the rank of the pair at i anew and queues it.
  const auto rank_pair = [&](size_t i) {
    const size_t next = i + lengths_[static_cast<size_t>(cells[i])];
    ranks[i] = next < cells.size() ? find(cells[i], cells[next]).rank : kNoMerge;
    if (ranks[i] != kNoMerge) queue.push(ranks[i], static_cast<uint32_t>(i));
  };
  for (size_t i = 0; i < cells.size(); ++i) rank_pair(i);
  uint32_t rank, position;
  while (queue.pop(rank, position)) {
    const size_t i = position;
    if (ranks[i] != rank) continue;  // overtaken by another merge
    const size_t right = i + lengths_[static_cast<size_t>(cells[i])];
    const size_t end = right + lengths_[static_cast<size_t>(cells[right])];
    const Token joined = find(cells[i], cells[right]).result;
    cells[i] = cells[end - 1] = joined;
    ranks[right] = kNoMerge;
    rank_pair(i);
    if (i > 0) rank_pair(i - lengths_[static_cast<size_t>(cells[i - 1])]);
  }
  for (size_t i = 0; i < cells.size(); i += lengths_[static_cast<size_t>(cells[i])]) {
    out.push_back(cells[i]);
  }
}

}  // namespace drover
