// The loop: draws examples, runs passes, steps, keeps a record, and can be stopped at any time.
//
// A Trainer holds the memory of passes and the optimizer's; what it is made of has to outlive it.
// One thread at a time uses it. For a recipe, an instruction set and a version of Drover the losses
// are the same to the bit, on any number of threads, however often it was stopped and resumed.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "train/checkpoint.h"
#include "train/decoder_pass.h"
#include "train/metrics.h"
#include "train/mixture.h"
#include "train/optimizer.h"
#include "train/recipe.h"
#include "train/vision_pass.h"

namespace drover {

struct TrainerParts {
  Parameters* parameters = nullptr;  // with values, and refreshed
  Lora* lora = nullptr;              // of these parameters: what is taught in place of them
  // Of each source in the recipe's order; a null where nothing is held out.
  std::vector<const Source*> sources, held_out;
  std::optional<Token> patch_token;
  Digest digest = {};  // of recipe, model, tokenizer and data: checkpoints are bound to it
};

// What is told of a training while it runs; a function may be empty.
struct TrainingWatch {
  const std::atomic<bool>* stop = nullptr;  // read before each step and pass
  int64_t steps = 0;                        // stop after so many in all; 0: when all is done
  std::function<void(const StepReport&)> step;
  std::function<void(const HeldOutReport&)> held_out;
  std::function<void(const std::string&)> warn;  // of a source that cannot be asked about
};

enum class TrainingEnd { kDone, kStopped };

class Trainer {
 public:
  Trainer(Context& context, const Recipe& recipe, const TrainerParts& parts);
  ~Trainer();

  // Takes the newest checkpoint of recipe.out that is whole; false if there is none at all. Those
  // that are damaged are said to `warn`; throws what is wrong with the newest when all are.
  bool resume(const std::function<void(const std::string&)>& warn);

  // Goes on until the plan is done or it is stopped, with a checkpoint at the end of either. Makes
  // recipe.out and writes there: checkpoints, metrics.jsonl, loss.svg. A step that a stop
  // interrupts is taken back. kBadData when losses are no numbers any more; what reading and
  // writing throw. Where an example cannot be had, a checkpoint is written before that is thrown;
  // of held-out ones it is said to watch.warn, and their source left out of that evaluation.
  TrainingEnd run(const TrainingWatch& watch);

  const TrainingCursor& cursor() const { return cursor_; }
  bool done() const { return cursor_.stage == static_cast<int64_t>(recipe_.stages.size()); }

 private:
  struct Drawn {
    std::vector<TrainingBatch> batches;        // a pass each
    std::vector<std::vector<size_t>> sources;  // of each document
    double weight = 0;                         // of all
    int64_t tokens = 0;
  };

  template <typename Work>
  auto keeping(Work&& work);
  Drawn draw(const RecipeStage& stage);
  bool step(const TrainingWatch& watch);
  bool evaluate(const TrainingWatch& watch);
  PassReport pass(const TrainingBatch& batch, float scale);
  void advance(const StepReport& report);
  const RecipeStage* stage_that_asks(size_t source) const;
  bool evaluation_is_due() const;
  bool checkpoint_is_due() const;
  void save();
  PlanPlace place() const;
  std::vector<NamedFloats> arrays();
  void refresh();

  Context& context_;
  const Recipe& recipe_;
  const TrainerParts parts_;
  Parameters& parameters_;
  std::vector<Parameter*> taught_;
  DecoderPass decoder_;
  std::unique_ptr<VisionPass> vision_;  // where the model has eyes
  Optimizer optimizer_;
  TrainingCursor cursor_;
  std::unique_ptr<ExampleMixture> mixture_;  // of the stage that runs
  std::unique_ptr<ExampleStream> stream_;
  std::unique_ptr<MetricsFile> metrics_;
  AlignedArray<float> seen_, dseen_;  // [patch rows, D]
  int64_t saved_step_ = -1;
  double saved_seconds_ = 0;  // of the cursor, at the last checkpoint
};

}  // namespace drover
