// What is learnt from: one document at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "image/tiles.h"
#include "text/vocabulary.h"

namespace drover {

struct Example {
  std::vector<Token> tokens;  // the whole document
  // [tokens], what the loss of predicting this token from those before it counts: 0 for what is not
  // learnt, such as a user's question. The first one's is never used.
  std::vector<float> weights;
  // Each patch token, in order, stands for the next row of these, tile after tile.
  std::vector<TiledImage> pictures = {};

  // Virtual repetition: where it is above 1, chunks of the document that are `filler` all through
  // count on global layers as if each stood there so many times, and the temperature of queries is
  // that of the longer document.
  double repeats = 1;
  std::vector<uint8_t> filler = {};  // [tokens] or empty
};

// What a source is made of, for the manifest and to find out what is both learnt and held out.
struct SourceFacts {
  struct File {
    std::string name;  // as the recipe has it
    int64_t bytes = 0;
    Digest sha256{};  // of the bytes on disk
  };
  struct Item {
    std::string name;
    Digest content{};  // of what is said of it; zero where that is drawn anew each time
  };
  std::vector<File> files;  // all of them, whichever side their items fall on
  std::vector<Item> items;  // on this side
  int64_t tokens = 0;       // of the items, pictures not counted; 0 where they are drawn
};

// Where examples come from. Example i of a seed is a function of both alone, so a training that was
// interrupted goes on with what it would have seen. Thread-safe.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::string_view name() const = 0;
  // length: the most tokens that the example may have. Sources of running text give so many, others
  // what they have. Throws what reading throws.
  virtual Example example(uint64_t seed, uint64_t index, int64_t length) const = 0;
  virtual SourceFacts facts() const { return {}; }
};

}  // namespace drover
