// The pictures of a request, as it names them: data URLs, or, where there is somebody to bring
// them, URLs of other hosts. This floor knows no network.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "image/image.h"
#include "image/tiles.h"
#include "model/model.h"
#include "text/picture_tokens.h"

namespace drover {

// Brings the picture at a URL that is no data URL; empty: nobody does. What it throws is the
// caller's fault (kUsage in errors), but for kCancelled.
using PictureSource = std::function<Image(std::string_view url)>;

// A model is made for a handful. Of a small file the tiles may be thousands of times larger, so a
// body's size is no limit to them.
inline constexpr size_t kMostPictures = 64;

class PictureReader {
 public:
  // Both must outlive it.
  PictureReader(const Model& model, const PictureSource& source) : model_(model), source_(source) {}

  // The picture at this URL, cut; what stands in its place in the text. `where` is named in errors:
  // kUnsupported where the model has no eyes, kUsage for a URL that is not read or brought, kLimit
  // after kMostPictures, and what decode_image() throws.
  PictureTokens read(std::string_view url, const std::string& where);
  // The same for a picture that the request has in it.
  PictureTokens read(std::span<const std::byte> file, const std::string& where);

  // Those that were read, not encoded yet.
  std::vector<TiledImage> take() { return std::move(pictures_); }

 private:
  void expect_room(const std::string& where) const;
  PictureTokens cut(const Image& image);

  const Model& model_;
  const PictureSource& source_;
  std::vector<TiledImage> pictures_;
};

}  // namespace drover
