// recipe_batches RECIPE.json: the batches that `drover train` would take, on standard output, for
// another trainer (recipes/edge/accelerate.py). With one process and --first 0 they are the same
// examples in the same order; several processes give each its own --first.
//
// A batch, little-endian, T = --rows, beyond `rows` filled with zeros and document -1:
//   int32    rows, pictures' rows P, tiles N
//   int32    tokens [T], targets [T], documents [T], positions [T], sources [T]
//   float32  weights [T], key bias [T], temperatures [T]
//   int32    rows of patch tokens [P]
//   uint8    pixels [N, side, side, 3]
// Documents are numbered in the batch, sources as in the recipe; what a temperature multiplies is
// the queries of layers without positions, what a key bias is added to their scores.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "base/error.h"
#include "train/batch.h"
#include "train/mixture.h"
#include "train/training.h"

namespace drover {
namespace {

struct Flags {
  std::string recipe;
  size_t stage = 1;
  int64_t rows = 2048;
  uint64_t first = 0;
  int64_t count = 0;
};

void write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, stdout) != bytes) {
    throw_error(ErrorKind::kCannotWrite, "standard output: cannot write");
  }
}

template <typename To, typename From>
void write_rows(const std::vector<From>& values, int64_t rows, To rest = 0) {
  std::vector<To> out(values.begin(), values.end());
  out.resize(static_cast<size_t>(rows), rest);
  write(out.data(), out.size() * sizeof(To));
}

void write_batch(const TrainingBatch& batch, const MicroBatch& micro, const ModelConfig& config,
                 int64_t rows) {
  std::vector<int32_t> documents, sources;
  for (size_t i = 0; i < batch.documents.size(); ++i) {
    const auto count = static_cast<size_t>(batch.documents[i].count);
    documents.insert(documents.end(), count, static_cast<int32_t>(i));
    sources.insert(sources.end(), count, static_cast<int32_t>(micro.sources[i]));
  }
  std::vector<float> temperatures;
  for (const int64_t position : batch.temperature_positions) {
    temperatures.push_back(query_temperature(config, position));
  }
  int64_t tiles = 0;
  for (const TiledImage& picture : batch.pictures) tiles += picture.layout.tiles();
  const int32_t head[] = {static_cast<int32_t>(batch.rows()),
                          static_cast<int32_t>(batch.patch_rows.size()),
                          static_cast<int32_t>(tiles)};
  write(head, sizeof head);
  write_rows<int32_t>(batch.tokens, rows);
  write_rows<int32_t>(batch.targets, rows);
  write_rows<int32_t>(documents, rows, -1);
  write_rows<int32_t>(batch.positions, rows);
  write_rows<int32_t>(sources, rows);
  write_rows<float>(batch.weights, rows);
  write_rows<float>(batch.key_bias, rows);
  write_rows<float>(temperatures, rows, 1);
  write_rows<int32_t>(batch.patch_rows, static_cast<int64_t>(batch.patch_rows.size()));
  for (const TiledImage& picture : batch.pictures) {
    write(picture.pixels.data(), picture.pixels.size());
  }
}

int run(int argc, char** argv) {
  Flags flags;
  CLI::App app("Writes the batches of a recipe's stage");
  app.add_option("recipe", flags.recipe, "RECIPE.json")->required();
  app.add_option("--stage", flags.stage, "From 1 on")->capture_default_str();
  app.add_option("--rows", flags.rows, "Of a batch")->capture_default_str();
  app.add_option("--first", flags.first, "Number of the first example")->capture_default_str();
  app.add_option("--count", flags.count, "Batches; 0: until nobody reads them any more");
  CLI11_PARSE(app, argc, argv);

  Context context(/*threads=*/1);
  const auto training = prepare_training(context, read_recipe(flags.recipe));
  const Recipe& recipe = training->recipe;
  if (flags.stage < 1 || flags.stage > recipe.stages.size()) {
    throw_error(ErrorKind::kUsage, "--stage: expected 1 to {}, got {}", recipe.stages.size(),
                flags.stage);
  }
  const RecipeStage& stage = recipe.stages[flags.stage - 1];
  if (stage.length > flags.rows) {
    throw_error(ErrorKind::kUsage, "--rows: expected {} at least, as long as an example, got {}",
                stage.length, flags.rows);
  }
  const ModelConfig& config = training->parameters->config();
  const auto& eyes = training->parameters->vision_config();
  const ExampleMixture mixture(training->parts.sources, stage.mixture, recipe.seed, stage.length);
  ExampleStream stream(context, mixture, flags.first);
  for (int64_t i = 0; flags.count == 0 || i < flags.count; ++i) {
    const MicroBatch micro = stream.next(flags.rows);
    write_batch(
        pack(config, training->parts.patch_token, eyes ? eyes->tile_tokens() : 0, micro.examples),
        micro, config, flags.rows);
  }
  std::fflush(stdout);
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) try {
  return drover::run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "recipe_batches: %s\n", error.what());
  return 1;
}
