// A recipe: everything about a training that is not data. Read from RECIPE.json, or made by `drover
// tune`; docs/train.md explains every field.
//
// A Recipe is read once, checked whole, and never changed. Plain data.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/decoder_pass.h"
#include "train/lora.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/schedule.h"

namespace drover {

struct RecipeStage {
  int64_t steps = 0;   // at most
  int64_t tokens = 0;  // of a step
  int64_t micro = 0;   // of one pass; steps are whole numbers of passes
  int64_t length = 0;  // of an example, at most
  // Names of sources with their weights, in the recipe's order of sources; 0 for those left out.
  std::vector<double> mixture;
  // Ends early once the running accuracy of this source's learnt tokens is past `accuracy`.
  struct Until {
    size_t source = 0;
    double accuracy = 0;
  };
  std::optional<Until> until;

  int64_t passes() const { return tokens / micro; }
};

struct RecipeSource {
  std::string name;
  boost::json::object settings;
};

struct Recipe {
  std::string name;
  std::filesystem::path folder;  // what relative names in it are relative to
  std::filesystem::path out;
  uint64_t seed = 0;
  Precision precision = Precision::kBF16;

  std::string licence;  // of the model that comes out; empty: that of `start`, if any

  std::filesystem::path config;     // a config.json; empty with `start`
  std::filesystem::path tokenizer;  // a file or a folder; empty: that of `start`
  std::string start;                // the model to begin from; empty: from nothing
  int64_t chunk = 0;                // of local attention, instead of the model's own; 0: that one

  Initialization initialization;
  OptimizerOptions optimizer;
  Schedule schedule;
  PassOptions experts;  // balance, router_z
  SelectionBias selection_bias;
  std::vector<std::string> freeze;  // globs on tensors' names
  // Teach adapters and leave the model as it is. Groups that are not named are those the model has.
  struct Adapters {
    LoraOptions options;
    bool all_groups = false;
  };
  std::optional<Adapters> lora;

  std::vector<RecipeSource> sources;
  std::vector<RecipeStage> stages;

  int64_t checkpoint_steps = 0;    // 0: by time alone
  double checkpoint_minutes = 10;  // 0: by steps alone
  int64_t checkpoints_kept = 2;
  int64_t evaluate_steps = 0;      // 0: at the end alone
  int64_t evaluate_examples = 32;  // of each source; 0: none

  // What decides which numbers come out: the recipe without "name", "licence", "out", "checkpoint"
  // and "evaluate". A checkpoint is bound to it.
  boost::json::object essence;

  int64_t steps() const;  // of all stages, at most
};

// `source` names the recipe in errors. kBadData names a field that is missing, unknown, of another
// type or out of its range.
Recipe recipe_from_json(const boost::json::object& json, const std::filesystem::path& folder,
                        const std::string& source);
Recipe read_recipe(const std::filesystem::path& path);

// Freezes what the patterns say; a glob must match the whole name. kUsage names a pattern that
// matches nothing, or says that nothing is left to teach.
void freeze(Parameters& parameters, std::span<const std::string> patterns);

}  // namespace drover
