#include "train/trainer.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "formats/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"
#include "train/random.h"

namespace drover {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempFolder;

// Two local layers and a global one, with experts in the last two.
constexpr const char* kConfig = R"({
  "model_type": "llama4_text", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24,
  "intermediate_size_mlp": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1,
  "attention_chunk_size": 8, "no_rope_layers": [1, 1, 0], "moe_layers": [1, 2],
  "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
  "use_qk_norm": true, "attn_temperature_tuning": true, "floor_scale": 16, "attn_scale": 0.1,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
  "max_position_embeddings": 1024})";

constexpr const char* kRecipe = R"({
  "name": "small", "out": "out", "seed": 3,
  "model": {"config": "config.json", "tokenizer": "tokenizer.json"},
  "initialization": {"embedding": 0.3},
  "optimizer": {"muon": {"rate": 0.02}, "adamw": {"rate": 0.01, "decay": 0}},
  "schedule": {"warmup": 3, "decay": 0.25},
  "experts": {"selection_bias": {"rate": 0.01, "until": 0.5}},
  "sources": {"counting": {}, "echo": {}},
  "checkpoint": {"every": 4, "keep": 2},
  "evaluate": {"every": 5, "examples": 3},
  "stages": [{"steps": 6, "tokens": 64, "micro": 32, "length": 16, "mixture": {"counting": 1}},
             {"steps": 6, "tokens": 96, "micro": 48, "length": 24,
              "mixture": {"counting": 1, "echo": 2}}]})";

// Counts up from anywhere, for a while.
class Counting : public Source {
 public:
  std::string_view name() const override { return "counting"; }
  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    if (drawn) drawn(index);
    Random random(seed, index);
    Example out;
    const int64_t first = random.below(20);
    for (int64_t i = random.between(length / 2, length); i > 0; --i) {
      out.tokens.push_back(static_cast<Token>(1 + (first + i) % 20));
      out.weights.push_back(1);
    }
    return out;
  }
  std::function<void(uint64_t)> drawn;
};

// Says a few tokens, and the same again; only those are learnt.
class Echo : public Source {
 public:
  std::string_view name() const override { return "echo"; }
  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random(seed, index);
    Example out;
    for (int64_t i = 0; i < length / 2; ++i) {
      out.tokens.push_back(static_cast<Token>(1 + random.below(23)));
      out.weights.push_back(0);
    }
    for (int64_t i = 0; i < length / 2; ++i) {
      out.tokens.push_back(out.tokens[static_cast<size_t>(i)]);
      out.weights.push_back(i == 0 ? 1.0f : 2.5f);
    }
    return out;
  }
};

json::object recipe_json() { return parse_json(kRecipe, "recipe").get_object(); }

// A training from the beginning, or from what another left in the folder.
struct School {
  explicit School(const fs::path& folder, int threads = 2, json::object recipe_text = recipe_json())
      : context(threads),
        recipe(recipe_from_json(recipe_text, folder, "recipe")),
        parameters(config_from_huggingface(parse_json(kConfig, "config").get_object(), "config"),
                   std::nullopt, recipe.precision) {
    initialize(parameters, recipe.initialization);
    parameters.refresh(context);
    parts.parameters = &parameters;
    parts.sources = {&counting, &echo};
    parts.held_out = {&asked, nullptr};
    trainer.emplace(context, recipe, parts);
  }
  TrainingEnd go(int64_t steps = 0) {
    TrainingWatch watch;
    watch.steps = steps;
    watch.stop = &stop;
    watch.step = [this](const StepReport& report) { reports.push_back(report); };
    watch.warn = [this](const std::string& text) { warnings.push_back(text); };
    return trainer->run(watch);
  }
  // Values of all tensors, one behind the other.
  std::vector<float> values() const {
    std::vector<float> out;
    for (const Parameter& p : parameters.all()) {
      out.insert(out.end(), p.value.data(), p.value.data() + p.value.size());
    }
    return out;
  }

  Context context;
  Recipe recipe;
  Parameters parameters;
  Counting counting, asked;
  Echo echo;
  TrainerParts parts;
  std::atomic<bool> stop{false};
  std::vector<StepReport> reports;
  std::vector<std::string> warnings;
  std::optional<Trainer> trainer;
};

// The metrics without what a clock says.
std::vector<std::string> timeless(const fs::path& folder) {
  std::ifstream file(folder / "out" / "metrics.jsonl");
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) {
    json::object object = parse_json(line, "line").get_object();
    object.erase("tokens_per_second");
    out.push_back(json::serialize(object));
  }
  return out;
}

class TrainerTest : public ::testing::Test {
 protected:
  // What a training that nobody disturbs comes to.
  static void SetUpTestSuite() {
    folder_ = new TempFolder(TempFolder::fast_parent());
    School school(folder_->path());
    EXPECT_EQ(school.go(), TrainingEnd::kDone);
    values_ = school.values();
    lines_ = timeless(folder_->path());
    reports_ = school.reports;
  }
  static void TearDownTestSuite() { delete folder_; }

  void expect_the_same(const School& school) {
    EXPECT_EQ(timeless(own_.path()), lines_);
    EXPECT_TRUE(school.values() == values_);
  }

  static inline TempFolder* folder_ = nullptr;
  static inline std::vector<float> values_;
  static inline std::vector<std::string> lines_;
  static inline std::vector<StepReport> reports_;
  TempFolder own_{TempFolder::fast_parent()};
};

TEST_F(TrainerTest, RunsThePlanAndKeepsARecord) {
  ASSERT_EQ(reports_.size(), 12u);
  EXPECT_EQ(lines_.size(), 12u + 3u) << "held-out examples after 5, 10 and at the end";
  for (int64_t i = 0; i < 12; ++i) {
    const StepReport& r = reports_[static_cast<size_t>(i)];
    EXPECT_EQ(r.step, i + 1);
    EXPECT_EQ(r.left, 11 - i);
    EXPECT_EQ(r.stage, i < 6 ? 1 : 2);
    EXPECT_GT(r.tokens, i < 6 ? 32 : 48);
    EXPECT_LE(r.tokens, i < 6 ? 64 : 96);
    EXPECT_EQ(r.sources[1].weight > 0, i >= 6) << "echo comes in the second stage";
    EXPECT_EQ(r.experts.size(), 2u);
    double loss = 0, weight = 0;
    for (const SourceScore& s : r.sources) {
      loss += s.loss;
      weight += s.weight;
    }
    // Sums of the same floats in another order, in double.
    EXPECT_NEAR(r.loss, loss / weight, 1e-9);
  }
  EXPECT_LT(reports_[5].loss, reports_[0].loss);
  const auto files = checkpoints_in(*folder_ / "out");
  EXPECT_EQ(files.size(), 2u) << "as many as are kept";
  EXPECT_EQ(files[0], checkpoint_path(*folder_ / "out", 12));
  EXPECT_TRUE(fs::exists(*folder_ / "out" / "loss.svg"));
}

TEST_F(TrainerTest, GoesOnAfterAStopAsIfThereHadBeenNone) {
  for (int64_t steps = 1; steps < 12; steps += 2) {
    School school(own_.path());
    school.trainer->resume({});
    EXPECT_EQ(school.go(steps), TrainingEnd::kStopped);
    EXPECT_EQ(school.trainer->cursor().step, steps);
  }
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  EXPECT_EQ(school.reports.size(), 1u);
  expect_the_same(school);
}

TEST_F(TrainerTest, TakesBackAStepThatAStopInterrupts) {
  for (const uint64_t index : {9u, 20u, 31u}) {
    School school(own_.path());
    school.trainer->resume({});
    // In the middle of drawing a step's examples; the step before its first pass then sees it.
    school.counting.drawn = [&](uint64_t i) {
      if (i >= index) school.stop = true;
    };
    EXPECT_EQ(school.go(), TrainingEnd::kStopped);
  }
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);
}

TEST_F(TrainerTest, AsksHeldOutExamplesAgainWhenAStopInterruptedThem) {
  {
    School school(own_.path());
    school.asked.drawn = [&](uint64_t) { school.stop = true; };
    EXPECT_EQ(school.go(), TrainingEnd::kStopped);
    EXPECT_EQ(school.trainer->cursor().step, 5);
  }
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);
}

TEST_F(TrainerTest, LosesWhatCameAfterTheLastCheckpointAndLearnsItAgain) {
  {
    School school(own_.path());
    school.go(7);
  }
  // As after kill -9 at step 7, which left a file of its own: the one of step 4 is the last.
  fs::remove(checkpoint_path(own_ / "out", 7));
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
  EXPECT_EQ(school.trainer->cursor().step, 4);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);
}

TEST_F(TrainerTest, FallsBackToTheCheckpointBeforeADamagedOne) {
  {
    School school(own_.path());
    school.go(9);
  }
  const fs::path newest = checkpoint_path(own_ / "out", 9),
                 before = checkpoint_path(own_ / "out", 8);
  std::string bytes = read_file(newest, 1 << 24);
  bytes[bytes.size() / 2] ^= 1;
  write_file(newest, bytes);
  std::vector<std::string> warnings;
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume([&](const std::string& text) { warnings.push_back(text); }));
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("is damaged"), std::string::npos) << warnings[0];
  EXPECT_EQ(school.trainer->cursor().step, 8);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);

  for (const fs::path& file : checkpoints_in(own_ / "out")) write_file(file, "nothing");
  School lost(own_.path());
  expect_error(ErrorKind::kBadData, "magic", [&] { lost.trainer->resume({}); });
}

TEST_F(TrainerTest, SavesWhatWasLearntBeforeAnExampleThatCannotBeHad) {
  {
    School school(own_.path());
    school.counting.drawn = [](uint64_t i) {
      if (i == 31) throw_error(ErrorKind::kBadData, "damaged");
    };
    expect_error(ErrorKind::kBadData, "source 'counting': damaged", [&] { school.go(); });
    EXPECT_GT(school.trainer->cursor().step, 4) << "or the checkpoint of step 4 would be enough";
    EXPECT_EQ(checkpoints_in(own_ / "out")[0],
              checkpoint_path(own_ / "out", school.trainer->cursor().step));
  }
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);
}

TEST_F(TrainerTest, SavesWhatWasLearntWhenAskingFails) {
  {
    School school(own_.path());
    school.asked.drawn = [](uint64_t) { throw std::bad_alloc(); };
    EXPECT_THROW(school.go(), std::bad_alloc);
  }
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
  EXPECT_EQ(school.trainer->cursor().step, 5);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);
}

TEST_F(TrainerTest, LeavesASourceOutOfAnEvaluationThatCannotBeAskedAbout) {
  School school(own_.path());
  school.asked.drawn = [](uint64_t) { throw_error(ErrorKind::kBadData, "damaged"); };
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  EXPECT_EQ(school.warnings.size(), 3u) << "after 5, 10 and at the end";
  EXPECT_NE(school.warnings[0].find("source 'counting': damaged"), std::string::npos);
  EXPECT_TRUE(school.values() == values_);
  const std::string last = timeless(own_.path()).back();
  EXPECT_EQ(last, R"({"step":12,"held_out":{}})");
}

TEST_F(TrainerTest, AsksAtTheLongestLengthThatASourceIsLearntWithAndOnlyIfItIs) {
  class Asked : public Source {
    std::string_view name() const override { return "asked"; }
    Example example(uint64_t, uint64_t, int64_t length) const override {
      longest = length;
      const auto tokens = static_cast<size_t>(length);
      return {.tokens = std::vector<Token>(tokens, 1), .weights = std::vector<float>(tokens, 1)};
    }

   public:
    mutable std::atomic<int64_t> longest{0};
  };
  json::object recipe = recipe_json();
  json::array& stages = recipe["stages"].get_array();
  stages[0].get_object()["length"] = 30;  // the last stage has 24
  stages[1].get_object()["mixture"] = {{"counting", 1}};
  School school(own_.path(), 2, recipe);
  const Asked counting, echo;
  school.parts.held_out = {&counting, &echo};
  school.trainer.emplace(school.context, school.recipe, school.parts);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  EXPECT_EQ(counting.longest, 30);
  EXPECT_EQ(echo.longest, 0) << "no stage teaches it";
}

TEST_F(TrainerTest, WritesNoLineOfHeldOutExamplesWhereThereAreNone) {
  School school(own_.path());
  school.parts.held_out = {nullptr, nullptr};
  school.trainer.emplace(school.context, school.recipe, school.parts);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  EXPECT_EQ(timeless(own_.path()).size(), 12u);
}

// The checkpoint with another number in its cursor, under a checksum that is right.
std::string with_cursor(const std::string& bytes, std::string_view key, const json::value& value) {
  constexpr size_t kSize = 8, kSum = 16, kHead = 20;
  uint64_t size = 0;
  std::memcpy(&size, bytes.data() + kSize, sizeof size);
  json::object head = parse_json(bytes.substr(kHead, size), "head").get_object();
  head["cursor"].get_object()[key] = value;
  const std::string text = json::serialize(head);
  std::string out = bytes.substr(0, kHead) + text + bytes.substr(kHead + size);
  size = text.size();
  const uint32_t sum = crc32c(std::as_bytes(std::span(text)));
  std::memcpy(out.data() + kSize, &size, sizeof size);
  std::memcpy(out.data() + kSum, &sum, sizeof sum);
  return out;
}

TEST_F(TrainerTest, RefusesACheckpointThatStandsOutsideThePlan) {
  {
    School school(own_.path());
    school.go(8);
  }
  const fs::path newest = checkpoint_path(own_ / "out", 8);
  fs::remove(checkpoint_path(own_ / "out", 4));
  const std::string bytes = read_file(newest, 1 << 24);
  const std::pair<const char*, json::value> wrong[] = {
      {"stage", -1},      {"stage", 3},           {"stage", 2},
      {"stage_step", -1}, {"stage_step", 6},      {"step", -1},
      {"step", 13},       {"evaluated", 9},       {"scores", json::array()},
      {"tokens", -1},     {"optimizer_steps", 7}, {"seconds", -1}};
  for (const auto& [key, value] : wrong) {
    SCOPED_TRACE(fmt::format("{} = {}", key, json::serialize(value)));
    write_file(newest, with_cursor(bytes, key, value));
    School school(own_.path());
    expect_error(ErrorKind::kBadData, "expected a place in a plan of 12 steps",
                 [&] { school.trainer->resume({}); });
    EXPECT_EQ(school.trainer->cursor().step, 0);
  }
  write_file(newest, with_cursor(bytes, "tokens", 7));
  School school(own_.path());
  EXPECT_TRUE(school.trainer->resume({}));
}

TEST_F(TrainerTest, DoesTheSameOnAnyNumberOfThreads) {
  School school(own_.path(), 1);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  expect_the_same(school);
}

TEST_F(TrainerTest, BeginsWhereThereIsNothingToResume) {
  School school(own_.path());
  EXPECT_FALSE(school.trainer->resume({}));
}

TEST_F(TrainerTest, EndsAStageOnceItsSourceIsLearnt) {
  json::object recipe = recipe_json();
  recipe["schedule"] = {{"warmup", 3}};
  recipe["stages"] = parse_json(R"([
      {"steps": 400, "tokens": 128, "length": 16, "mixture": {"counting": 1},
       "until": {"source": "counting", "accuracy": 0.6}},
      {"steps": 2, "tokens": 32, "length": 16, "mixture": {"echo": 1}}])",
                                "stages");
  School school(own_.path(), 2, recipe);
  EXPECT_EQ(school.go(), TrainingEnd::kDone);
  const auto first = std::count_if(school.reports.begin(), school.reports.end(),
                                   [](const StepReport& r) { return r.stage == 1; });
  EXPECT_GE(first, 10);
  EXPECT_LT(first, 400);
  EXPECT_EQ(school.reports.size(), static_cast<size_t>(first + 2));
  EXPECT_EQ(school.reports.back().left, 0);
  const SourceScore& last = school.reports[static_cast<size_t>(first - 1)].sources[0];
  EXPECT_GT(last.correct / last.weight, 0.4);
}

TEST_F(TrainerTest, StopsWhenLossesAreNoNumbers) {
  json::object recipe = recipe_json();
  recipe["optimizer"] = {{"adamw", {{"rate", 1e30}}}, {"clip", 0}};
  recipe["schedule"] = json::object();
  School school(own_.path(), 2, recipe);
  expect_error(ErrorKind::kBadData, "training has come apart", [&] { school.go(); });
}

TEST_F(TrainerTest, SavesNoValuesThatAreNoNumbers) {
  json::object recipe = recipe_json();
  // The one step's loss is a number; what it makes of the values is none.
  recipe["optimizer"] = {{"adamw", {{"rate", 1e30}, {"decay", 1e30}}}};
  recipe["schedule"] = json::object();
  School school(own_.path(), 2, recipe);
  expect_error(ErrorKind::kBadData, "values that are no numbers: training has come apart",
               [&] { school.go(1); });
  EXPECT_EQ(school.trainer->cursor().step, 1);
  EXPECT_TRUE(checkpoints_in(own_ / "out").empty());
}

TEST_F(TrainerTest, NamesASourceWhoseExampleIsTooLong) {
  class Long : public Source {
    std::string_view name() const override { return "long"; }
    Example example(uint64_t, uint64_t, int64_t length) const override {
      const auto tokens = static_cast<size_t>(length + 1);
      return {.tokens = std::vector<Token>(tokens, 1), .weights = std::vector<float>(tokens, 1)};
    }
  };
  const Long source;
  School school(own_.path());
  school.parts.sources[0] = &source;
  school.trainer.emplace(school.context, school.recipe, school.parts);
  expect_error(ErrorKind::kBadData, "source 'long': example ", [&] { school.go(); });
}

TEST(ExampleMixture, DrawsByWeightAndByIndexAlone) {
  const Counting counting;
  const Echo echo;
  const Source* sources[] = {&counting, &echo};
  const double weights[] = {1, 3};
  const ExampleMixture mixture(sources, weights, 5, 20);
  int64_t second = 0;
  for (uint64_t i = 0; i < 4000; ++i) second += mixture.source_of(i) == 1;
  // 4000 draws at 3/4: a deviation of 27, and five of them.
  EXPECT_NEAR(static_cast<double>(second), 3000, 5 * 27.4);
  const ExampleMixture again(sources, weights, 5, 20), other(sources, weights, 6, 20);
  int64_t differ = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(mixture.draw(i).example.tokens, again.draw(i).example.tokens);
    differ += mixture.draw(i).example.tokens != other.draw(i).example.tokens;
  }
  EXPECT_GT(differ, 40);
}

TEST(ExampleStream, FillsPassesInOrderAndBeginsAnywhere) {
  const Counting counting;
  const Source* sources[] = {&counting};
  const double weights[] = {1};
  const ExampleMixture mixture(sources, weights, 5, 20);
  Context context(2), alone(1);
  ExampleStream stream(context, mixture, 0);
  std::vector<uint64_t> starts;
  std::vector<std::vector<Token>> seen;
  for (int pass = 0; pass < 20; ++pass) {
    starts.push_back(stream.index());
    const MicroBatch batch = stream.next(64);
    int64_t tokens = 0;
    for (const Example& example : batch.examples) {
      seen.push_back(example.tokens);
      tokens += static_cast<int64_t>(example.tokens.size());
    }
    EXPECT_LE(tokens, 64);
    EXPECT_GT(tokens, 64 - 20) << "or another would have fitted";
  }
  EXPECT_EQ(stream.index(), seen.size());
  for (uint64_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], mixture.draw(i).example.tokens);
  ExampleStream later(alone, mixture, starts[7]);
  EXPECT_EQ(later.next(64).examples[0].tokens, seen[starts[7]]);
}

}  // namespace
}  // namespace drover
