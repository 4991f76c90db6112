// Examples side by side in one run of rows, as a pass takes them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/packed_attention/packed_attention.h"
#include "model/config.h"
#include "train/example.h"

namespace drover {

// T rows. A row's target is the token that follows it in its document.
struct TrainingBatch {
  std::vector<Token> tokens;       // [T]
  std::vector<Token> targets;      // [T]; 0 where there is nothing to learn
  std::vector<float> weights;      // [T], of the target's loss
  std::vector<RowSpan> documents;  // one after the other, covering all rows
  std::vector<RowSpan> chunks;     // the same, cut at chunk borders of each document
  std::vector<int64_t> positions;  // [T], in the document
  std::vector<float> key_bias;     // [T] or empty: added to scores of this key on global layers
  std::vector<int64_t> temperature_positions;  // [T], where queries' temperature is taken
  std::vector<TiledImage> pictures;
  std::vector<int64_t> patch_rows;  // rows of patch tokens, one per row of the encoded pictures

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  double weight() const;  // sum of weights
};

// Lays out examples for a model. Rows with patch_token are those that pictures fill, tokens_of_tile
// for each of their tiles; kBadData where counts of these differ, for pictures without a
// patch_token, and for a token that the model does not have. An example without tokens is left out.
TrainingBatch pack(const ModelConfig& config, std::optional<Token> patch_token,
                   int64_t tokens_of_tile, std::span<const Example> examples);

}  // namespace drover
