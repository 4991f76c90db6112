// Byte-pair encoding of one piece of text: from single bytes, neighbours are joined, the best merge
// first and the leftmost of equals, until none is left. Immutable and thread-safe; views the
// Vocabulary that it was made from, which must be valid (validate), stay in place and outlive it.
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "text/token_index.h"
#include "text/vocabulary.h"

namespace drover {

class Bpe {
 public:
  explicit Bpe(const Vocabulary& vocabulary);

  // Appends the tokens of `piece` (any bytes, fewer than 2^31). Bytes without a token are left out
  // before the merging, as the tokenizers library does. n bytes take O(n log n) time.
  void encode(std::string_view piece, std::vector<Token>& out) const;

  // The token of a single byte, or -1.
  Token byte_token(unsigned char byte) const { return byte_tokens_[byte]; }

 private:
  struct Merge {
    uint64_t pair;  // left << 32 | right
    uint32_t rank;  // smaller joins first; kNoMerge in a free slot
    Token result;
  };

  const Merge& find(Token left, Token right) const;
  void encode_short(std::string_view piece, std::vector<Token>& out) const;
  void encode_long(std::string_view piece, std::vector<Token>& out) const;

  TokenIndex index_;  // ordinary tokens
  std::array<Token, 256> byte_tokens_;
  std::vector<uint32_t> lengths_;  // bytes of each ordinary token
  std::vector<Merge> merges_;      // open addressing, at most half full
  size_t longest_token_ = 0;
  bool ignore_merges_;
};

}  // namespace drover
