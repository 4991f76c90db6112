// Learns a byte-level BPE vocabulary from text: words are counted, and from single bytes the pair
// of neighbours that stands most often is joined, again and again, until there are as many tokens
// as asked for. The result depends on the words and how often they stand alone: not on their order,
// and not on the machine. Where two pairs stand equally often, the one of the smaller ids comes
// first; this is also the order of the tokenizers library, whose merges are the same.
//
// A trainer owns what it counts; one thread at a time uses it. Memory goes with the distinct words,
// not with the text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/progress.h"
#include "text/pre_tokenizer.h"
#include "text/vocabulary.h"

namespace drover {

struct BpeTraining {
  PreTokenizer pre = PreTokenizer::kLlama4;
  int64_t size = 4096;        // tokens in all: 256 bytes, what merges make, control tokens
  int64_t min_frequency = 2;  // a pair that stands less often is not joined
  std::vector<std::string> special = {};  // control tokens, which have the last ids
};

struct TrainedBpe {
  Vocabulary vocabulary;  // smaller than asked for where there is nothing left to join
  int64_t bytes = 0;      // of the text
  int64_t tokens = 0;     // that the text takes
  int64_t words = 0, distinct_words = 0;
};

class BpeTrainer {
 public:
  // Words longer than this are cut; of all distinct ones there may be so many bytes, which take up
  // to 3 GB of memory.
  static constexpr size_t kMaxWordBytes = size_t{1} << 16;
  static constexpr size_t kMaxDistinctBytes = size_t{1} << 27;

  // kUsage for a size that leaves no room, and for control tokens that are empty or named twice.
  explicit BpeTrainer(BpeTraining training);

  // Counts the words of a text; each call stands for itself, no word goes over its border. kLimit
  // beyond kMaxDistinctBytes.
  void add(std::string_view text);

  // Progress counts merges. Bytes have the first ids, in the order of the byte alphabet.
  TrainedBpe train(const Progress& progress = {}) const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  BpeTraining training_;
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> words_;
  int64_t bytes_ = 0;
  size_t distinct_bytes_ = 0;
};

}  // namespace drover
