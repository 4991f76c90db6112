#include "train/batch.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace drover {

double TrainingBatch::weight() const {
  return std::accumulate(weights.begin(), weights.end(), 0.0);
}

namespace {

// Virtual repetition of one document, rows [first, first + tokens): chunks that hold nothing but
// filler count `repeats` times for whoever looks back on them, and queries are as warm as they
// would be that far into the longer document.
void repeat(const ModelConfig& config, const Example& example, int64_t first, TrainingBatch& batch) {
  const int64_t tokens = static_cast<int64_t>(example.tokens.size());
  DROVER_CHECK(static_cast<int64_t>(example.filler.size()) == tokens);
  const int64_t chunk = config.chunk > 0 ? config.chunk : tokens;
  const float bias = static_cast<float>(std::log(example.repeats));
  double position = 0;
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, tokens);
    const bool is_filler = std::all_of(example.filler.begin() + begin, example.filler.begin() + end,
                                       [](uint8_t f) { return f != 0; });
    for (int64_t t = begin; t < end; ++t) {
      const size_t row = static_cast<size_t>(first + t);
      batch.temperature_positions[row] =
          static_cast<int64_t>(position) + (t - begin);
      if (is_filler) batch.key_bias[row] = bias;
    }
    position += static_cast<double>(end - begin) * (is_filler ? example.repeats : 1.0);
  }
}

}  // namespace

TrainingBatch pack(const ModelConfig& config, std::optional<Token> patch_token,
                   int64_t tokens_of_tile, std::span<const Example> examples) {
  TrainingBatch batch;
  const bool repeats = std::any_of(examples.begin(), examples.end(),
                                   [](const Example& e) { return e.repeats > 1; });
  for (const Example& example : examples) {
    const int64_t tokens = static_cast<int64_t>(example.tokens.size());
    const int64_t first = batch.rows();
    if (tokens == 0) continue;
    DROVER_CHECK(example.weights.size() == example.tokens.size());
    int64_t patches = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const Token token = example.tokens[static_cast<size_t>(t)];
      if (token < 0 || token >= config.vocab) {
        throw_error(ErrorKind::kBadData, "example: token {}: expected 0 to {}, got {}", t,
                    config.vocab - 1, token);
      }
      const bool last = t + 1 == tokens;
      batch.tokens.push_back(token);
      batch.targets.push_back(last ? 0 : example.tokens[static_cast<size_t>(t + 1)]);
      batch.weights.push_back(last ? 0.0f : example.weights[static_cast<size_t>(t + 1)]);
      batch.positions.push_back(t);
      if (!example.pictures.empty() && patch_token && token == *patch_token) {
        batch.patch_rows.push_back(first + t);
        ++patches;
      }
    }
    int64_t tiles = 0;
    for (const TiledImage& picture : example.pictures) {
      tiles += picture.layout.tiles();
      batch.pictures.push_back(picture);
    }
    if (tiles * tokens_of_tile != patches) {
      throw_error(ErrorKind::kBadData,
                  "example: expected {} patch tokens for its pictures, got {}",
                  tiles * tokens_of_tile, patches);
    }
    batch.documents.push_back({first, tokens});
    const int64_t chunk = config.chunk > 0 ? config.chunk : tokens;
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      batch.chunks.push_back({first + begin, std::min(chunk, tokens - begin)});
    }
    if (repeats) {
      batch.key_bias.resize(batch.tokens.size(), 0.0f);
      const size_t known = batch.temperature_positions.size();
      batch.temperature_positions.resize(batch.tokens.size());
      std::iota(batch.temperature_positions.begin() + static_cast<int64_t>(known),
                batch.temperature_positions.end(), int64_t{0});
      if (example.repeats > 1) repeat(config, example, first, batch);
    }
  }
  if (!repeats) batch.temperature_positions = batch.positions;
  return batch;
}

}  // namespace drover
