#include "text/bpe.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace drover {
namespace {

constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

// Up to here the whole row of pairs is searched for every merge: it lies in a few cache lines, and
// nearly all pieces of real text are this short. Above, a heap keeps the pairs in order.
constexpr size_t kShortPiece = 48;

uint64_t pair_of(Token left, Token right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const Vocabulary& vocabulary)
    : index_(vocabulary.tokens, vocabulary.tokens.size()),
      ignore_merges_(vocabulary.ignore_merges) {
  const auto& tokens = vocabulary.tokens;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const TokenKind kind = vocabulary.kinds[i];
    if (kind != TokenKind::kNormal && kind != TokenKind::kByte) continue;
    DROVER_CHECK(index_.insert(static_cast<Token>(i)));
    longest_token_ = std::max(longest_token_, tokens[i].size());
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
  struct Node {
    Token token;
    uint32_t rank;  // of the pair with the next node
    int32_t previous, next;
  };
  DROVER_CHECK(piece.size() < size_t{std::numeric_limits<int32_t>::max()});
  std::vector<Node> nodes;
  nodes.reserve(piece.size());
  for (const char byte : piece) {
    const Token token = byte_tokens_[static_cast<unsigned char>(byte)];
    if (token < 0) continue;
    const auto i = static_cast<int32_t>(nodes.size());
    nodes.push_back({token, kNoMerge, i - 1, i + 1});
  }
  if (nodes.empty()) return;
  nodes.back().next = -1;

  // The heap's entries are rank << 32 | position: the best merge first, the leftmost of equals. An
  // entry whose rank is no longer its node's has been overtaken by another merge.
  std::vector<uint64_t> heap;
  const auto rank_pair = [&](int32_t i) {
    Node& node = nodes[static_cast<size_t>(i)];
    node.rank = node.next < 0 ? kNoMerge
                              : find(node.token, nodes[static_cast<size_t>(node.next)].token).rank;
    return node.rank != kNoMerge;
  };
  const auto entry = [&](int32_t i) {
    return uint64_t{nodes[static_cast<size_t>(i)].rank} << 32 | static_cast<uint32_t>(i);
  };
  for (int32_t i = 0; static_cast<size_t>(i) < nodes.size(); ++i) {
    if (rank_pair(i)) heap.push_back(entry(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto i = static_cast<int32_t>(top & 0xFFFFFFFF);
    Node& node = nodes[static_cast<size_t>(i)];
    if (node.rank != top >> 32) continue;
    Node& right = nodes[static_cast<size_t>(node.next)];
    node.token = find(node.token, right.token).result;
    node.next = right.next;
    right.rank = kNoMerge;
    if (node.next >= 0) nodes[static_cast<size_t>(node.next)].previous = i;
    for (const int32_t changed : {i, node.previous}) {
      if (changed >= 0 && rank_pair(changed)) {
        heap.push_back(entry(changed));
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    }
  }
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next) {
    out.push_back(nodes[static_cast<size_t>(i)].token);
  }
}

}  // namespace drover
