// drover train RECIPE.json: teaches a model from nothing, or from one that is there.
// drover tune MODEL DATA: the same with a recipe of its own making.

#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/file_writer.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/quantities.h"
#include "formats/json.h"
#include "train/training.h"

namespace drover {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;

void say(const std::string& line) { std::fputs((printable(line, 1000) + "\n").c_str(), stderr); }

// Told while it runs: a line that is drawn again on a terminal, one line of every so many
// elsewhere.
class Teller {
 public:
  Teller(const Recipe& recipe, int64_t every) : recipe_(recipe), every_(every) {
    const char* kind = std::getenv("TERM");
    terminal_ =
        ::isatty(STDERR_FILENO) == 1 && (kind == nullptr || std::string_view(kind) != "dumb");
  }
  ~Teller() { clear(); }

  void step(const StepReport& r) {
    // What one sees has to be steadier than single steps are, and not lag by more than a glance.
    constexpr double kKeep = 0.95;
    const auto smooth = [&](double& mean, double now) {
      mean = steps_ == 0 ? now : kKeep * mean + (1 - kKeep) * now;
    };
    smooth(loss_, r.loss);
    smooth(seconds_, r.seconds);
    smooth(tokens_, static_cast<double>(r.tokens));
    ++steps_;
    last_loss_ = r.loss;
    constexpr int64_t kFirst = 5;  // steps, until which the first ones' memory has come
    if (steps_ == kFirst && r.left > 0) {
      line(fmt::format("About {} for the {} steps that are left.",
                       duration_text(seconds_ * static_cast<double>(r.left)), grouped(r.left)));
    }
    const std::string text = fmt::format(
        "step {} of {}{}: loss {:.4f}, {} tokens/s{}, {} left", grouped(r.step),
        grouped(r.step + r.left),
        recipe_.stages.size() > 1 ? fmt::format(", stage {}", r.stage) : "", loss_,
        grouped(static_cast<int64_t>(tokens_ / seconds_)),
        r.experts.empty() ? "" : fmt::format(", busiest expert {:.1f} x the mean", r.crowding()),
        duration_text(seconds_ * static_cast<double>(r.left)));
    if (terminal_) {
      const auto now = Clock::now();
      if (now - drawn_at_ < std::chrono::milliseconds(100) && r.left > 0) return;
      drawn_at_ = now;
      drawn_ = true;
      fmt::print(stderr, "\r\033[K{}", text);
      std::fflush(stderr);
    } else if (r.step % every_ == 0 || r.left == 0 || r.step == 1) {
      say(text);
    }
  }

  void held_out(const HeldOutReport& r) {
    std::string scores;
    for (const SourceScore& s : r.sources) {
      if (s.weight == 0) continue;
      scores += fmt::format(" {} {:.3f} ({:.1f} %)", s.name, s.loss / s.weight,
                            100 * s.correct / s.weight);
    }
    if (!scores.empty()) line(fmt::format("step {}, held out:{}", grouped(r.step), scores));
  }

  void warning(const std::string& text) {
    clear();
    warn(text);
  }

  // A line that stays.
  void line(const std::string& text) {
    clear();
    say(text);
  }

  double last_loss() const { return last_loss_; }

 private:
  void clear() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
    drawn_ = false;
  }

  const Recipe& recipe_;
  const int64_t every_;
  bool terminal_ = false, drawn_ = false;
  Clock::time_point drawn_at_;
  int64_t steps_ = 0;
  double loss_ = 0, seconds_ = 0, tokens_ = 0, last_loss_ = 0;
};

// What both commands do with a recipe.
struct Teach {
  ModelFlags machine;
  bool resume = false;
  int64_t steps = 0;
  std::string out;
  int64_t log_every = 20;
  bool write = false, json = false;

  void add_options(CLI::App& command);
  void operator()(Recipe recipe) const;

 private:
  void say_plan(const Training& training, const TrainingCursor& cursor) const;
  void finish(Context& context, const Training& training, const Trainer& trainer, TrainingEnd end,
              double loss) const;
};

void Teach::add_options(CLI::App& command) {
  command.add_flag("--resume", resume,
                   "Go on from the newest checkpoint in the folder, if there is one");
  command.add_option("--log-every", log_every, "Steps between two lines where no terminal listens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_flag("--write", write,
                   "Write the model as it stands also if training stops before its end");
  command.add_flag("--json", json, "Print the result as one JSON object");
  machine.add_machine(command);
}

// What is going to happen, before it does.
void Teach::say_plan(const Training& training, const TrainingCursor& cursor) const {
  const Recipe& recipe = training.recipe;
  int64_t tensors = 0, taught = 0, parameters = 0, all = 0;
  for (const Parameter& p : training.parameters->all()) {
    ++tensors;
    all += p.size();
    if (!p.taught) continue;
    ++taught;
    parameters += p.size();
  }
  if (training.lora) {
    parameters = 0;
    for (const Parameter& p : training.lora->factors()) parameters += p.size();
    say(fmt::format("{}: teaches adapters of rank {} on {} of {} tensors, {} parameters beside {}",
                    recipe.name, recipe.lora->options.rank, taught, tensors, grouped(parameters),
                    grouped(all)));
  } else {
    say(fmt::format("{}: teaches {} of {} tensors, {} of {} parameters", recipe.name, taught,
                    tensors, grouped(parameters), grouped(all)));
  }
  const TeachingMemory memory =
      teaching_memory(*training.parameters, training.lora.get(), recipe.optimizer);
  say(fmt::format("{} of memory beside passes: values {}, gradients {}, averages {}, copies {}",
                  bytes_text(memory.bytes()), bytes_text(memory.values),
                  bytes_text(memory.gradients), bytes_text(memory.averages),
                  bytes_text(memory.copies)));
  if (!recipe.freeze.empty()) say(fmt::format("frozen: {}", fmt::join(recipe.freeze, ", ")));
  int64_t tokens = 0;
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    const RecipeStage& stage = recipe.stages[i];
    std::string text = fmt::format("stage {}: {}{} steps of {} tokens, examples up to {}:", i + 1,
                                   stage.until ? "at most " : "", grouped(stage.steps),
                                   grouped(stage.tokens), grouped(stage.length));
    double sum = 0;
    for (const double weight : stage.mixture) sum += weight;
    const char* comma = "";
    for (size_t s = 0; s < stage.mixture.size(); ++s) {
      if (stage.mixture[s] == 0) continue;
      text += fmt::format("{} {} {:.3g} %", comma, recipe.sources[s].name,
                          100 * stage.mixture[s] / sum);
      comma = ",";
    }
    if (stage.until) {
      text += fmt::format("; until {} is right on {:.0f} %",
                          recipe.sources[stage.until->source].name, 100 * stage.until->accuracy);
    }
    say(text);
    tokens += stage.steps * stage.tokens;
  }
  say(fmt::format("{} steps, {} tokens at most; into {}", grouped(recipe.steps()), grouped(tokens),
                  recipe.out.string()));
  if (cursor.step > 0) say(fmt::format("goes on after step {}", grouped(cursor.step)));
}

void Teach::finish(Context& context, const Training& training, const Trainer& trainer,
                   TrainingEnd end, double loss) const {
  const TrainingCursor& cursor = trainer.cursor();
  std::vector<fs::path> written;
  if (end == TrainingEnd::kDone || write) {
    ProgressBar bar("writing", "bytes");
    written = write_taught(context, training, bar.callback());
  }
  if (json) {
    json::object result = {{"done", end == TrainingEnd::kDone},
                           {"step", cursor.step},
                           {"tokens", cursor.tokens},
                           {"seconds", cursor.seconds},
                           {"out", training.recipe.out.string()}};
    if (loss > 0) result["loss"] = loss;
    json::array files;
    for (const fs::path& path : written) files.push_back(json::string(path.string()));
    result["files"] = std::move(files);
    return print_out(json::serialize(result) + "\n");
  }
  std::string text =
      end == TrainingEnd::kStopped
          ? fmt::format("Stopped after step {}; --resume goes on from there.\n",
                        grouped(cursor.step))
          : fmt::format("Learnt from {} tokens in {} steps and {}.\n", grouped(cursor.tokens),
                        grouped(cursor.step), duration_text(cursor.seconds));
  for (const fs::path& path : written) text += fmt::format("Wrote {}\n", path.string());
  print_out(text);
}

void Teach::operator()(Recipe recipe) const {
  if (!out.empty()) recipe.out = fs::path(out).lexically_normal();
  expect_room(recipe, resume);
  const auto context = machine.make_context();
  InterruptGuard interrupt;
  std::unique_ptr<Training> training;
  {
    ProgressBar bar("loading", "bytes");
    training = prepare_training(*context, std::move(recipe), cancellable(bar.callback()));
  }
  Trainer trainer(*context, training->recipe, training->parts);
  if (resume) trainer.resume([](const std::string& text) { warn(text); });
  say_plan(*training, trainer.cursor());

  TrainingWatch watch;
  std::optional<Teller> teller(std::in_place, training->recipe, log_every);
  watch.stop = &InterruptGuard::flag();
  watch.steps = steps;
  watch.step = [&](const StepReport& report) { teller->step(report); };
  watch.held_out = [&](const HeldOutReport& report) { teller->held_out(report); };
  watch.warn = [&](const std::string& text) { teller->warning(text); };
  const TrainingEnd end = trainer.run(watch);
  const double loss = teller->last_loss();
  teller.reset();  // its line goes
  finish(*context, *training, trainer, end, loss);
}

// A recipe for a model that is there and a file of conversations.
struct Tune {
  Teach teach;
  std::string model;
  std::vector<std::string> data;
  bool full = false;
  std::vector<std::string> groups;  // of adapters; empty: all that the model has
  int64_t rank = 8;
  std::optional<double> alpha;
  std::vector<std::string> frozen;
  std::optional<double> rate;
  int64_t steps = 200, tokens = 4096, micro = 2048, length = 1024, seed = 0;
  double held_out = 0.1;
  std::string precision = "bf16";

  void operator()() const;
};

void Tune::operator()() const {
  const auto list = [](const std::vector<std::string>& texts) {
    json::array out;
    for (const std::string& text : texts) out.push_back(json::string(text));
    return out;
  };
  std::vector<std::string> files;
  for (const std::string& file : data) files.push_back(fs::absolute(file).string());
  // The folder's own name, also of "tuned/" and ".".
  fs::path folder = fs::absolute(teach.out).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  const std::string name = folder.filename().string();
  if (full && (!groups.empty() || alpha)) {
    throw_error(ErrorKind::kUsage, "lora, alpha: expected no --full, which teaches no adapters");
  }
  if (!full && !frozen.empty()) {
    throw_error(ErrorKind::kUsage, "freeze: expected --full; adapters freeze the whole model");
  }
  json::object recipe = {
      {"name", name},
      {"seed", seed},
      {"precision", precision},
      {"model", {{"start", locate_model(model).string()}}},
      {"optimizer", {{"adamw", {{"rate", rate.value_or(full ? 2e-5 : 1e-3)}, {"decay", 0}}}}},
      {"schedule", {{"warmup", std::max<int64_t>(1, steps / 20)}, {"decay", 0.9}}},
      {"freeze", list(frozen)},
      {"sources",
       {{"data",
         {{"kind", "chat"},
          {"files", list(files)},
          {"licence", "unknown"},
          {"origin", "the user"},
          {"held_out", held_out}}}}},
      {"evaluate", {{"every", std::max<int64_t>(1, steps / 10)}, {"examples", 32}}},
      {"stages",
       {{{"steps", steps},
         {"tokens", tokens},
         {"micro", micro},
         {"length", length},
         {"mixture", {{"data", 1}}}}}}};
  if (!full) {
    json::object lora = {{"rank", rank}, {"alpha", alpha.value_or(2 * static_cast<double>(rank))}};
    if (!groups.empty()) lora["groups"] = list(groups);
    recipe["lora"] = std::move(lora);
  }
  teach(recipe_from_json(recipe, fs::current_path(), "tune"));
}

}  // namespace

void add_train(CLI::App& app) {
  auto teach = std::make_shared<Teach>();
  auto file = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("train", "Teach a model by a recipe, from nothing or on");
  command->add_option("recipe", *file, "What is taught, from what, and how")
      ->type_name("RECIPE.json")
      ->required();
  command->add_option("-o,--out", teach->out, "The folder to write to; the recipe's if unset")
      ->type_name("FOLDER");
  command
      ->add_option("--steps", teach->steps,
                   "Stop after so many steps in all, as Ctrl-C would; --resume goes on")
      ->check(CLI::PositiveNumber);
  teach->add_options(*command);
  command->callback([teach, file] { (*teach)(read_recipe(*file)); });
}

void add_tune(CLI::App& app) {
  auto tune = std::make_shared<Tune>();
  CLI::App* command = app.add_subcommand("tune", "Teach a model that is there from conversations");
  command->add_option("model", tune->model, "A GGUF file, a Hugging Face folder, or a name")
      ->type_name("MODEL")
      ->required();
  command
      ->add_option("data", tune->data,
                   "Conversations, a JSON object a line: {\"messages\": [...]}; repeatable")
      ->type_name("DATA.jsonl")
      ->required();
  command->add_option("-o,--out", tune->teach.out, "The folder to write to, whose name it gets")
      ->type_name("FOLDER")
      ->required();
  const auto number = [&](const char* flag, auto& value, const char* help) {
    command->add_option(flag, value, help)->capture_default_str();
  };
  command->add_flag("--full", tune->full, "Teach every tensor, not adapters beside them");
  command
      ->add_option("--lora", tune->groups,
                   "What gets adapters: attention, shared (or dense), experts; all if unset")
      ->delimiter(',')
      ->check(CLI::IsMember({"attention", "shared", "experts"}))
      ->type_name("LIST")
      ->allow_extra_args(false);
  number("--rank", tune->rank, "Of adapters");
  command->add_option("--alpha", tune->alpha,
                      "Adapters count alpha / rank; twice the rank if unset");
  command->add_option("--rate", tune->rate,
                      "How far a step goes at most; 1e-3 if unset, 2e-5 with --full");
  number("--steps", tune->steps, "Steps in all");
  number("--tokens", tune->tokens, "Tokens of a step");
  number("--micro", tune->micro, "Tokens that are computed together");
  number("--length", tune->length, "Longest example, tokens");
  number("--held-out", tune->held_out, "The part of the data that is kept to be asked about");
  number("-s,--seed", tune->seed, "Of the order of examples");
  command->add_option("--precision", tune->precision, "Of products: bf16, or f32 to compare")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  command
      ->add_option("--freeze", tune->frozen,
                   "With --full: tensors that stay as they are, by name (*, ?, [...]);\n"
                   "repeatable")
      ->type_name("PATTERN")
      ->allow_extra_args(false);
  tune->teach.add_options(*command);
  command->callback([tune] { (*tune)(); });
}

}  // namespace drover
