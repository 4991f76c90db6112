#include "engine/picture_encoder.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace drover {
namespace {

PictureHash hash_of(const TiledImage& picture) {
  PictureHash out;
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash(EVP_MD_CTX_new(),
                                                                     EVP_MD_CTX_free);
  const int64_t shape[] = {picture.layout.rows, picture.layout.cols, picture.layout.height,
                           picture.layout.width, picture.size};
  unsigned size = 0;
  const bool good =
      hash != nullptr && EVP_DigestInit_ex(hash.get(), EVP_sha256(), nullptr) == 1 &&
      EVP_DigestUpdate(hash.get(), shape, sizeof(shape)) == 1 &&
      EVP_DigestUpdate(hash.get(), picture.pixels.data(), picture.pixels.size()) == 1 &&
      EVP_DigestFinal_ex(hash.get(), out.data(), &size) == 1;
  DROVER_CHECK(good && size == out.size());
  return out;
}

}  // namespace

PictureTokens picture_tokens(const VisionConfig& config, const TileLayout& layout) {
  return {layout.rows, layout.cols, config.tile_tokens()};
}

PictureEncoder::PictureEncoder(const Model& model, Context& context, int64_t budget)
    : vision_(model.vision()), encoder_(context, vision_), budget_(budget) {}

std::vector<std::shared_ptr<const EncodedPicture>> PictureEncoder::encode(
    std::span<const TiledImage> pictures, const Progress& progress,
    const std::atomic<bool>* cancel) {
  const VisionConfig& config = vision_.config;
  std::vector<Kept> out(pictures.size());
  std::vector<PictureHash> hashes;
  std::vector<size_t> fresh;  // the first of each kind that is not known
  std::vector<const uint8_t*> tiles;
  for (size_t i = 0; i < pictures.size(); ++i) {
    DROVER_CHECK(pictures[i].size == config.tiles.size);
    hashes.push_back(hash_of(pictures[i]));
    const bool before = std::find(hashes.begin(), hashes.end() - 1, hashes[i]) != hashes.end() - 1;
    out[i] = find(hashes[i]);
    if (out[i] || before) continue;
    fresh.push_back(i);
    for (int64_t t = 0; t < pictures[i].layout.tiles(); ++t) tiles.push_back(pictures[i].tile(t));
  }

  const int64_t rows = static_cast<int64_t>(tiles.size()) * config.tile_tokens();
  AlignedArray<float> all(static_cast<size_t>(rows * config.embedding));
  const bool whole =
      encoder_.encode(tiles, {all.data(), rows, config.embedding, config.embedding},
                      [&](int64_t done, int64_t total) {
                        if (progress)
                          progress(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
                        return cancel == nullptr || !cancel->load(std::memory_order_relaxed);
                      });
  if (!whole) throw_error(ErrorKind::kCancelled, "stopped");

  const float* from = all.data();
  for (const size_t i : fresh) {
    auto picture = std::make_shared<EncodedPicture>();
    picture->hash = hashes[i];
    picture->tokens = picture_tokens(config, pictures[i].layout);
    picture->embedding = config.embedding;
    picture->embeddings =
        AlignedArray<float>(static_cast<size_t>(picture->tokens.patches() * config.embedding));
    std::memcpy(picture->embeddings.data(), from, static_cast<size_t>(picture->bytes()));
    from += picture->embeddings.size();
    for (size_t j = i; j < pictures.size(); ++j) {
      if (hashes[j] == hashes[i]) out[j] = picture;
    }
    keep(std::move(picture));
  }
  encoded_ += static_cast<int64_t>(fresh.size());
  reused_ += static_cast<int64_t>(pictures.size() - fresh.size());
  return out;
}

PictureEncoder::Kept PictureEncoder::find(const PictureHash& hash) {
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return nullptr;
  kept_.splice(kept_.begin(), kept_, found->second);
  return kept_.front();
}

void PictureEncoder::keep(Kept picture) {
  bytes_ += picture->bytes();
  kept_.push_front(std::move(picture));
  by_hash_[kept_.front()->hash] = kept_.begin();
  while (bytes_ > budget_) {
    bytes_ -= kept_.back()->bytes();
    by_hash_.erase(kept_.back()->hash);
    kept_.pop_back();
  }
}

}  // namespace drover
