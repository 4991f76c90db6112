// What a conversation is shown: tokens, and the pictures that some of them stand for.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "text/picture_tokens.h"

namespace drover {

// A picture as the decoder takes it. Immutable once made; shared between prompts, sessions and the
// encoder that keeps it.
struct EncodedPicture {
  PictureHash hash{};
  PictureTokens tokens;
  int64_t embedding = 0;           // D
  AlignedArray<float> embeddings;  // [tokens.patches(), D], tile after tile

  // Only its name is known: it stands in a text that was read before, and is not looked at again.
  bool unseen() const { return embeddings.size() == 0; }
  const float* row(int64_t i) const { return embeddings.data() + i * embedding; }
  int64_t bytes() const {
    return static_cast<int64_t>(embeddings.size()) * static_cast<int64_t>(sizeof(float));
  }
};

// Each patch token, in order, stands for the next row of the pictures, in order (spec section 5.7).
// Without pictures a patch token is a token like any other.
struct Prompt {
  std::vector<Token> tokens;
  std::vector<std::shared_ptr<const EncodedPicture>> pictures = {};
};

}  // namespace drover
