// From a recipe to all that a Trainer needs, and from what it taught to a model. A Training owns
// its parts.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "model/model.h"
#include "train/recipe.h"
#include "train/sources.h"
#include "train/trainer.h"

namespace drover {

struct Training {
  Recipe recipe;
  std::unique_ptr<Model> start;  // null when the model begins from nothing
  std::optional<Tokenizer> tokenizer;
  std::string tokenizer_json;  // what it says in that form
  std::unique_ptr<Parameters> parameters;
  std::unique_ptr<Lora> lora;  // where the recipe teaches adapters
  SourceContext learnt_from, asked_about;
  std::vector<std::unique_ptr<Source>> sources, held_out;
  TrainerParts parts;
};

// kUsage where recipe.out holds what a new training would take the place of: checkpoints, metrics,
// a model of this name. One that is resumed takes the place of a model alone, and only with its
// checkpoints.
void expect_room(const Recipe& recipe, bool resume);

// What teaching takes beside the activations of a pass, in bytes.
struct TeachingMemory {
  int64_t values = 0;  // of the model and, with adapters, of these and of the matrices they change
  int64_t gradients = 0;
  int64_t averages = 0;  // of the optimizer
  int64_t copies = 0;    // that products take

  int64_t bytes() const { return values + gradients + averages + copies; }
};
// lora: null where the parameters themselves are taught.
TeachingMemory teaching_memory(const Parameters& parameters, Lora* lora,
                               const OptimizerOptions& optimizer);
// kLimit where that is more than `machine` bytes.
void expect_memory(const TeachingMemory& memory, int64_t machine);

// Reads the model and the sources that the recipe names, freezes, and sets the values. Throws what
// reading throws; kLimit where teaching takes more than the machine's memory; kBadData where
// tokenizer and model do not go together, where a source keeps everything to be asked about, or
// where an item is learnt and asked about too.
std::unique_ptr<Training> prepare_training(Context& context, Recipe recipe,
                                           const Progress& progress = {});

// Into recipe.out: manifest.json (train/manifest.h), NAME.gguf, and a folder NAME in the form of
// Hugging Face; of adapters the folder NAME alone, in the form of PEFT. Gives what was written.
std::vector<std::filesystem::path> write_taught(Context& context, const Training& training,
                                                const Progress& progress = {});

}  // namespace drover
