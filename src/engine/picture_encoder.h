// Pictures to embeddings, each only once: what was seen lately is kept by its content.
//
// It owns what it keeps; those who were given a picture share it. One thread at a time uses a
// PictureEncoder and its Context.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "engine/prompt.h"
#include "image/tiles.h"
#include "kernels/context.h"
#include "model/model.h"
#include "model/vision_encoder.h"

namespace drover {

// The sequence of a cut picture.
PictureTokens picture_tokens(const VisionConfig& config, const TileLayout& layout);

class PictureEncoder {
 public:
  // Five pictures of 17 tiles at the released sizes.
  static constexpr int64_t kDefaultBudget = int64_t{256} << 20;

  // `model`, which must have vision (kUnsupported), and `context` must outlive the encoder.
  // budget: bytes of embeddings that are kept; what prompts hold does not count.
  PictureEncoder(const Model& model, Context& context, int64_t budget = kDefaultBudget);

  // The pictures' embeddings, in order. All tiles of those that are not known go through together.
  // Progress counts tiles times layers. Throws kCancelled when `cancel` is set on the way; nothing
  // is kept then.
  std::vector<std::shared_ptr<const EncodedPicture>> encode(
      std::span<const TiledImage> pictures, const Progress& progress = {},
      const std::atomic<bool>* cancel = nullptr);

  // Pictures encoded, and found to be known, so far.
  int64_t encoded() const { return encoded_; }
  int64_t reused() const { return reused_; }

 private:
  using Kept = std::shared_ptr<const EncodedPicture>;

  Kept find(const PictureHash& hash);
  void keep(Kept picture);

  const Vision& vision_;
  VisionEncoder encoder_;
  int64_t budget_;
  int64_t bytes_ = 0;
  std::list<Kept> kept_;  // the latest used first
  std::map<PictureHash, std::list<Kept>::iterator> by_hash_;
  int64_t encoded_ = 0;
  int64_t reused_ = 0;
};

}  // namespace drover
