#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "train/batch.h"
#include "train/loss_plot.h"

namespace drover {
namespace {

namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;

// Held-out examples have numbers of their own, or a source that makes them up would ask what it
// taught.
constexpr uint64_t kHeldOut = 0x68656c64206f7574;  // "held out"

// How a stage's running accuracy forgets, a step, and how many steps it needs to say anything.
constexpr double kKeep = 0.9;
constexpr int64_t kLeastSteps = 10;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool is_set(const std::atomic<bool>* flag) { return flag != nullptr && flag->load(); }

std::vector<Parameter*> taught_of(const TrainerParts& parts) {
  std::vector<Parameter*> out;
  for (Parameter& parameter : parts.lora ? parts.lora->factors() : parts.parameters->all()) {
    if (parameter.taught) out.push_back(&parameter);
  }
  return out;
}

// Adds what the rows of each document came to to the score of its source.
void add_scores(const TrainingBatch& batch, const DecoderPass& decoder,
                std::span<const size_t> sources, std::vector<SourceScore>& scores) {
  for (size_t i = 0; i < sources.size(); ++i) {
    SourceScore& score = scores[sources[i]];
    const RowSpan& rows = batch.documents[i];
    for (int64_t t = rows.first; t < rows.first + rows.count; ++t) {
      const auto row = static_cast<size_t>(t);
      const double weight = batch.weights[row];
      score.weight += weight;
      score.loss += weight * decoder.losses()[row];
      score.correct += weight * decoder.hits()[row];
    }
  }
}

// Of the MoE layers: which part of their tokens went to each expert.
std::vector<std::vector<double>> shares_of(const ModelConfig& config,
                                           std::span<const int64_t> tokens) {
  std::vector<std::vector<double>> out;
  const auto experts = static_cast<size_t>(config.experts);
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    if (!config.layers[layer].moe) continue;
    const auto of = tokens.subspan(layer * experts, experts);
    double all = 0;
    for (const int64_t n : of) all += static_cast<double>(n);
    std::vector<double>& shares = out.emplace_back();
    for (const int64_t n : of) shares.push_back(static_cast<double>(n) / std::max(all, 1.0));
  }
  return out;
}

[[noreturn]] void throw_apart(const std::string& what) {
  throw Error(ErrorKind::kBadData, what + ": training has come apart",
              "lower rates or a longer warm-up may help; the last checkpoint is from before");
}

// kBadData for a place that no training by this recipe comes to.
void check_cursor(const TrainingCursor& c, const Recipe& recipe, const std::string& source) {
  const auto stages = static_cast<int64_t>(recipe.stages.size());
  const bool on_the_way = c.stage >= 0 && c.stage < stages;
  // A stage that is over is left at once.
  const int64_t steps = on_the_way ? recipe.stages[static_cast<size_t>(c.stage)].steps : 1;
  const bool fits = (on_the_way || c.stage == stages) && c.stage_step >= 0 &&
                    c.stage_step < steps && c.step >= c.stage_step && c.step <= recipe.steps() &&
                    c.evaluated >= 0 && c.evaluated <= c.step && c.optimizer_steps == c.step &&
                    c.tokens >= 0 && std::isfinite(c.seconds) && c.seconds >= 0 &&
                    c.scores.size() == recipe.sources.size();
  if (fits) return;
  throw_error(ErrorKind::kBadData,
              "{}: expected a place in a plan of {} steps in {} stages from {} sources, got step "
              "{}, {} in stage {}, with {} scores",
              source, recipe.steps(), stages, recipe.sources.size(), c.step, c.stage_step,
              c.stage + 1, c.scores.size());
}

}  // namespace

Trainer::Trainer(Context& context, const Recipe& recipe, const TrainerParts& parts)
    : context_(context),
      recipe_(recipe),
      parts_(parts),
      parameters_(*parts.parameters),
      taught_(taught_of(parts)),
      decoder_(context, parameters_, recipe.experts),
      optimizer_(context, taught_, recipe.optimizer, recipe.precision) {
  DROVER_CHECK(parts.sources.size() == recipe.sources.size());
  DROVER_CHECK(parts.held_out.size() == recipe.sources.size());
  if (parameters_.vision_config()) vision_ = std::make_unique<VisionPass>(context, parameters_);
  cursor_.scores.resize(recipe.sources.size());
}

Trainer::~Trainer() = default;

// What passes multiply with, after values changed.
void Trainer::refresh() {
  if (parts_.lora) {
    parts_.lora->apply(context_);
  } else {
    parameters_.refresh(context_, taught_);
  }
}

std::vector<NamedFloats> Trainer::arrays() {
  std::vector<NamedFloats> out;
  for (Parameter* parameter : taught_) out.push_back({parameter->name, parameter->value.span()});
  for (NamedFloats& kept : optimizer_.state()) out.push_back(std::move(kept));
  out.push_back({"selection bias", decoder_.selection_bias()});
  return out;
}

bool Trainer::resume(const std::function<void(const std::string&)>& warn) {
  const std::vector<fs::path> files = checkpoints_in(recipe_.out);
  std::optional<Error> first;
  for (const fs::path& file : files) {
    try {
      const TrainingCursor cursor = read_checkpoint(file, parts_.digest, arrays());
      check_cursor(cursor, recipe_, printable(file.string(), 300));
      cursor_ = cursor;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kBadData) throw;
      if (!first) first = error;
      if (warn) warn(error.message());
      continue;
    }
    optimizer_.set_steps(cursor_.optimizer_steps);
    refresh();
    saved_step_ = cursor_.step;
    saved_seconds_ = cursor_.seconds;
    return true;
  }
  if (first) throw *first;
  return false;
}

PlanPlace Trainer::place() const {
  PlanPlace out;
  out.step = cursor_.step;
  out.total = recipe_.steps();
  out.left = -cursor_.stage_step;
  for (size_t i = static_cast<size_t>(cursor_.stage); i < recipe_.stages.size(); ++i) {
    out.left += recipe_.stages[i].steps;
  }
  return out;
}

// Without gradients where the scale is 0.
PassReport Trainer::pass(const TrainingBatch& batch, float scale) {
  const auto rows = static_cast<int64_t>(batch.patch_rows.size());
  const int64_t width = parameters_.config().hidden;
  MatrixView seen, dseen;
  if (rows > 0) {
    seen_.reserve_discarding(static_cast<size_t>(rows * width));
    seen = {seen_.data(), rows, width, width};
    std::vector<const uint8_t*> tiles;
    for (const TiledImage& picture : batch.pictures) {
      for (int64_t i = 0; i < picture.layout.tiles(); ++i) tiles.push_back(picture.tile(i));
    }
    vision_->forward(tiles, seen);
    dseen_.reserve_discarding(static_cast<size_t>(rows * width));
    dseen = {dseen_.data(), rows, width, width};
  }
  const PassReport report = decoder_.forward(batch, seen, scale);
  if (scale != 0) {
    decoder_.backward(batch, dseen);
    if (rows > 0) vision_->backward(dseen);
  }
  return report;
}

// Does what may fail and changes nothing that is learnt: what was learnt is then saved first.
template <typename Work>
auto Trainer::keeping(Work&& work) {
  try {
    return work();
  } catch (...) {
    if (cursor_.step > 0 && cursor_.step != saved_step_) save();
    throw;
  }
}

// The examples of the step that comes now, as its passes take them.
Trainer::Drawn Trainer::draw(const RecipeStage& stage) {
  const auto& eyes = parameters_.vision_config();
  if (!stream_) {
    mixture_ =
        std::make_unique<ExampleMixture>(parts_.sources, stage.mixture, recipe_.seed, stage.length);
    stream_ = std::make_unique<ExampleStream>(context_, *mixture_, cursor_.example);
  }
  Drawn out;
  for (int64_t i = 0; i < stage.passes(); ++i) {
    MicroBatch micro = stream_->next(stage.micro);
    out.batches.push_back(pack(parameters_.config(), parts_.patch_token,
                               eyes ? eyes->tile_tokens() : 0, micro.examples));
    out.sources.push_back(std::move(micro.sources));
    out.weight += out.batches.back().weight();
    out.tokens += out.batches.back().rows();
  }
  if (!(out.weight > 0)) {
    throw_error(ErrorKind::kBadData, "step {}: expected tokens that are to be learnt, got none",
                cursor_.step + 1);
  }
  return out;
}

// Returns false, with nothing changed, if it was stopped before the end.
bool Trainer::step(const TrainingWatch& watch) {
  const auto start = Clock::now();
  const ModelConfig& config = parameters_.config();
  const RecipeStage& stage = recipe_.stages[static_cast<size_t>(cursor_.stage)];
  const auto [batches, sources, weight, tokens] = keeping([&] { return draw(stage); });
  StepReport report;
  report.tokens = tokens;
  report.sources.resize(recipe_.sources.size());
  for (size_t i = 0; i < report.sources.size(); ++i) {
    report.sources[i].name = recipe_.sources[i].name;
  }
  std::vector<int64_t> expert_tokens(decoder_.selection_bias().size());
  if (parts_.lora) {
    parts_.lora->clear_gradients(context_);
  } else {
    parameters_.clear_gradients(context_);
  }
  for (size_t i = 0; i < batches.size(); ++i) {
    if (is_set(watch.stop)) {
      stream_.reset();  // so that the next step begins where this one did
      return false;
    }
    const PassReport done = pass(batches[i], static_cast<float>(1 / weight));
    add_scores(batches[i], decoder_, sources[i], report.sources);
    report.loss += done.loss / weight;
    report.balance += done.balance * batches[i].weight() / weight;
    for (size_t e = 0; e < done.expert_tokens.size(); ++e) {
      expert_tokens[e] += done.expert_tokens[e];
    }
  }
  if (parts_.lora) parts_.lora->backward(context_);
  report.gradient_norm = optimizer_.gradient_norm();
  if (!std::isfinite(report.loss) || !std::isfinite(report.gradient_norm)) {
    throw_apart(fmt::format("step {}: the loss is {} and the gradient's length {}",
                            cursor_.step + 1, report.loss, report.gradient_norm));
  }
  const PlanPlace at = place();
  report.rate = rate_scale(recipe_.schedule, at);
  optimizer_.update(report.rate, clip_scale(report.gradient_norm, recipe_.optimizer.clip));
  refresh();
  update_selection_bias(recipe_.selection_bias, at, config.experts, expert_tokens,
                        decoder_.selection_bias());

  report.step = cursor_.step + 1;
  report.stage = cursor_.stage + 1;
  report.experts = shares_of(config, expert_tokens);
  report.seconds = seconds_since(start);
  advance(report);
  report.left = place().left;
  metrics_->add(report);
  if (watch.step) watch.step(report);
  return true;
}

void Trainer::advance(const StepReport& report) {
  const RecipeStage& stage = recipe_.stages[static_cast<size_t>(cursor_.stage)];
  ++cursor_.step;
  ++cursor_.stage_step;
  cursor_.example = stream_->index();
  cursor_.optimizer_steps = optimizer_.steps();
  cursor_.tokens += report.tokens;
  cursor_.seconds += report.seconds;
  for (size_t i = 0; i < cursor_.scores.size(); ++i) {
    RunningScore& score = cursor_.scores[i];
    const SourceScore& now = report.sources[i];
    if (now.weight == 0) continue;
    score.weight = kKeep * score.weight + now.weight;
    score.loss = kKeep * score.loss + now.loss;
    score.correct = kKeep * score.correct + now.correct;
  }
  const bool learnt = stage.until && cursor_.stage_step >= kLeastSteps &&
                      cursor_.scores[stage.until->source].accuracy() > stage.until->accuracy;
  if (!learnt && cursor_.stage_step < stage.steps) return;
  ++cursor_.stage;
  cursor_.stage_step = 0;
  std::fill(cursor_.scores.begin(), cursor_.scores.end(), RunningScore());
  stream_.reset();
}

// Of the stages that use the source the one with the longest examples; null if none does.
const RecipeStage* Trainer::stage_that_asks(size_t source) const {
  const RecipeStage* out = nullptr;
  if (parts_.held_out[source] == nullptr) return out;
  for (const RecipeStage& stage : recipe_.stages) {
    if (stage.mixture[source] > 0 && (out == nullptr || stage.length > out->length)) out = &stage;
  }
  return out;
}

bool Trainer::evaluation_is_due() const {
  if (recipe_.evaluate_examples == 0 || cursor_.step == 0 || cursor_.evaluated == cursor_.step) {
    return false;
  }
  bool asks = false;
  for (size_t i = 0; i < parts_.held_out.size(); ++i) asks = asks || stage_that_asks(i) != nullptr;
  const int64_t every = recipe_.evaluate_steps;
  return asks && (done() || (every > 0 && cursor_.step % every == 0));
}

// Returns false, with nothing written, if it was stopped before the end.
bool Trainer::evaluate(const TrainingWatch& watch) {
  const auto& eyes = parameters_.vision_config();
  HeldOutReport report;
  report.step = cursor_.step;
  for (size_t i = 0; i < parts_.held_out.size(); ++i) {
    // The same examples all through the training.
    const RecipeStage* stage = stage_that_asks(i);
    if (stage == nullptr) continue;
    const double all = 1;
    const ExampleMixture source({&parts_.held_out[i], 1}, {&all, 1}, recipe_.seed ^ kHeldOut,
                                stage->length);
    ExampleStream stream(context_, source, 0);
    std::vector<SourceScore> score(1);
    score[0].name = recipe_.sources[i].name;
    try {
      while (stream.index() < static_cast<uint64_t>(recipe_.evaluate_examples)) {
        const MicroBatch micro = stream.next(stage->micro);
        if (is_set(watch.stop)) return false;
        const TrainingBatch batch = pack(parameters_.config(), parts_.patch_token,
                                         eyes ? eyes->tile_tokens() : 0, micro.examples);
        pass(batch, /*scale=*/0);
        add_scores(batch, decoder_, micro.sources, score);
      }
    } catch (const Error& error) {
      if (watch.warn) watch.warn(fmt::format("held out, left out: {}", error.message()));
      continue;
    }
    report.sources.push_back(std::move(score[0]));
  }
  cursor_.evaluated = cursor_.step;
  metrics_->add(report);
  if (watch.held_out) watch.held_out(report);
  return true;
}

bool Trainer::checkpoint_is_due() const {
  if (cursor_.step == saved_step_ || cursor_.step == 0) return false;
  if (recipe_.checkpoint_steps > 0 && cursor_.step % recipe_.checkpoint_steps == 0) return true;
  return recipe_.checkpoint_minutes > 0 &&
         cursor_.seconds - saved_seconds_ >= 60 * recipe_.checkpoint_minutes;
}

void Trainer::save() {
  // The loss of a step is that of the values before it: what it made of them nobody has seen yet.
  for (const NamedFloats& array : arrays()) {
    if (std::all_of(array.values.begin(), array.values.end(),
                    [](float x) { return std::isfinite(x); })) {
      continue;
    }
    throw_apart(fmt::format("step {}: '{}' has values that are no numbers", cursor_.step,
                            printable(array.name)));
  }
  metrics_->flush_to_disk();
  const fs::path path = checkpoint_path(recipe_.out, cursor_.step);
  write_checkpoint(path, parts_.digest, cursor_, arrays());
  saved_step_ = cursor_.step;
  saved_seconds_ = cursor_.seconds;
  // Older ones go; those of later steps are damaged, or we would stand there.
  const std::vector<fs::path> files = checkpoints_in(recipe_.out);
  const auto own = std::find(files.begin(), files.end(), path);
  for (auto file = own; file != files.end(); ++file) {
    std::error_code ignored;
    if (file - own >= recipe_.checkpoints_kept) fs::remove(*file, ignored);
  }
  const std::string metrics = (recipe_.out / "metrics.jsonl").string();
  const MappedFile lines(metrics);
  const auto bytes = lines.bytes();
  write_file(recipe_.out / "loss.svg",
             loss_svg(loss_curves({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                                  printable(metrics, 300)),
                      recipe_.name));
}

TrainingEnd Trainer::run(const TrainingWatch& watch) {
  std::error_code failure;
  fs::create_directories(recipe_.out, failure);
  if (failure) throw_errno("create", recipe_.out.string(), failure.value());
  metrics_ =
      std::make_unique<MetricsFile>(recipe_.out / "metrics.jsonl", cursor_.step, cursor_.evaluated);
  remove_unfinished(recipe_.out);
  bool stopped = false;
  while (!stopped) {
    if (evaluation_is_due() && !keeping([&] { return evaluate(watch); })) {
      stopped = true;
      break;
    }
    if (checkpoint_is_due()) save();
    if (done()) break;
    stopped =
        is_set(watch.stop) || (watch.steps > 0 && cursor_.step >= watch.steps) || !step(watch);
  }
  if (cursor_.step != saved_step_) save();
  return stopped ? TrainingEnd::kStopped : TrainingEnd::kDone;
}

}  // namespace drover
