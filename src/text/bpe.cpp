#include "text/bpe.h"

#include <algorithm>

#include "base/error.h"
#include "text/merge_queue.h"

namespace drover {
namespace {

// Up to here the whole row of pairs is searched for every merge: it lies in a few cache lines, and
// nearly all pieces of real text are shorter. Measured on Chinese and on random letters, MergeQueue
// overtakes it at about this length.
constexpr size_t kShortPiece = 128;

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
