#include "api/pictures.h"

#include "api/data_url.h"
#include "base/error.h"
#include "engine/picture_encoder.h"
#include "image/decode.h"

namespace drover {
namespace {

Image bring(const PictureSource& source, std::string_view url, const std::string& where) {
  try {
    return source(url);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kCancelled) throw;
    // Words between the field and what is not ours to name: errors take the field from there.
    throw Error(ErrorKind::kUsage, fmt::format("{}: picture not read: {}", where, error.message()),
                error.hint());
  }
}

}  // namespace

PictureTokens PictureReader::read(std::string_view url, const std::string& where) {
  expect_room(where);
  return cut(source_ && !url.starts_with("data:")
                 ? bring(source_, url, where)
                 : decode_image(bytes_of_data_url(url, where), where));
}

PictureTokens PictureReader::read(std::span<const std::byte> file, const std::string& where) {
  expect_room(where);
  return cut(decode_image(file, where));
}

void PictureReader::expect_room(const std::string& where) const {
  model_.vision();  // throws before the work
  if (pictures_.size() == kMostPictures) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} pictures in a request", where,
                kMostPictures);
  }
}

PictureTokens PictureReader::cut(const Image& image) {
  const VisionConfig& config = model_.vision().config;
  pictures_.push_back(cut_tiles(config.tiles, image));
  return picture_tokens(config, pictures_.back().layout);
}

}  // namespace drover
