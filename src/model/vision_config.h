// What a model's eyes are: everything about the vision encoder that is not a weight. Spec
// section 5.
//
// A VisionConfig is read from a file, validated once, and never changed. Plain data, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "formats/gguf_writer.h"
#include "image/tiles.h"
#include "text/vocabulary.h"

namespace drover {

class GgufFile;
struct HuggingfaceFolder;

struct VisionConfig {
  TileRules tiles;                     // P = tiles.size: side of a tile, pixels
  float mean[3] = {0.5f, 0.5f, 0.5f};  // a pixel becomes (x / 255 - mean) / std, per colour
  float std[3] = {0.5f, 0.5f, 0.5f};

  int64_t patch = 0;   // side of a patch, pixels
  int64_t hidden = 0;  // W
  int64_t heads = 0;   // H, of W / H components
  int64_t width = 0;   // F, inner size of the feed-forward network
  int64_t layer_count = 0;
  int64_t shuffle = 0;    // s: s x s patches are joined to one token
  int64_t adapter = 0;    // A, size of the adapter's two layers
  int64_t embedding = 0;  // D, hidden size of the decoder
  float norm_eps = 0;
  double rope_theta = 0;

  // The token whose embedding is replaced by what is seen; one per row of the result.
  std::optional<Token> patch_token;

  int64_t side() const { return tiles.size / patch; }  // patches
  int64_t patches() const { return side() * side(); }  // of a tile
  int64_t rows() const { return patches() + 1; }       // and the class token
  int64_t head_dim() const { return hidden / heads; }
  int64_t patch_values() const { return 3 * patch * patch; }
  int64_t joined() const { return shuffle * shuffle * hidden; }
  int64_t tile_tokens() const { return patches() / (shuffle * shuffle); }
  int64_t parameters() const;
};

// The vision part of config.json, and preprocessor_config.json (or processor_config.json) beside it
// for the tiles; nothing if the model is text only. kUnsupported for an encoder of another kind.
// embedding: the decoder's hidden size.
std::optional<VisionConfig> vision_config_from_huggingface(const HuggingfaceFolder& folder,
                                                           int64_t embedding);

// The clip.* keys of a GGUF file (spec section 9.4), a file for vision alone or a whole model;
// nothing if there are none. kUnsupported names another projector; kBadData if the result is not
// what a decoder of hidden size `embedding`, if one is given, takes.
std::optional<VisionConfig> vision_config_from_gguf(const GgufFile& file,
                                                    std::optional<int64_t> embedding);

// The same keys, and under drover.vision.* what the format has no key for.
void write_vision_config(GgufWriter& out, const VisionConfig& config);

// Checks every size and relation; kBadData that names the field.
void validate(const VisionConfig& config, const std::string& source);

}  // namespace drover
