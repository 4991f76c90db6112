#include "eval/needle.h"

#include <gtest/gtest.h>

#include <fstream>
#include <optional>
#include <set>

#include "base/mapped_file.h"
#include "eval/needle_endpoint.h"
#include "eval/needle_local.h"
#include "eval/needle_report.h"
#include "eval/random_model.h"
#include "image/decode.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

// What stands in the text after `before` and before the first of `ends`, from `at` on; `at` moves
// behind it. Nothing if `before` is not there.
std::optional<std::string> between(std::string_view text, std::string_view before,
                                   std::string_view ends, size_t& at) {
  const size_t found = text.find(before, at);
  if (found == std::string_view::npos) return std::nullopt;
  const size_t begin = found + before.size();
  const size_t end = std::min(text.find_first_of(ends, begin), text.size());
  at = end;
  return std::string(text.substr(begin, end - begin));
}

std::optional<std::string> between(std::string_view text, std::string_view before,
                                   std::string_view ends) {
  size_t at = 0;
  return between(text, before, ends, at);
}

// Reads the last `sight` bytes of the text and answers as somebody would who reads well.
class Reader : public NeedleAnswerer {
 public:
  explicit Reader(size_t sight = ~size_t{0}) : sight_(sight), layout_(byte_layout()) {}

  const PromptLayout& layout() const override { return layout_; }
  NeedleAnswer answer(const NeedlePrompt& prompt) override {
    ++asked;
    const size_t split = prompt.content.rfind("\n\n");
    const std::string question = prompt.content.substr(split);
    std::string text = prompt.content.substr(0, split);
    if (text.size() > sight_) text.erase(0, text.size() - sight_);
    std::string said = "It says";
    if (auto name = between(question, "cipher ", " ")) {
      constexpr std::string_view kSame = " stands for the same number as the cipher ";
      while (const auto next = between(text, fmt::format("cipher {}{}", *name, kSame), ".")) {
        name = next;
      }
      if (const auto value = between(text, fmt::format("cipher {} stands for ", *name), ". \n")) {
        said.append(" ").append(*value);
      }
    } else {
      auto owner = between(question, "pass number of ", "?");
      if (!owner) owner = between(question, "pass numbers of ", "?");
      const std::string line = fmt::format("pass number of {} is ", owner.value_or("nobody"));
      size_t at = 0;
      while (const auto value = between(text, line, ". \n", at)) said.append(" ").append(*value);
    }
    return {said + ".", static_cast<int64_t>(prompt.tokens.size()), 0};
  }
  int asked = 0;

 private:
  size_t sight_;
  PromptLayout layout_;
};

NeedleGrid small_grid() {
  NeedleGrid grid;
  grid.lengths = {2048, 1024};
  grid.depths = 3;
  grid.seeds = 2;
  grid.kinds = all_needle_kinds();
  return grid;
}

TEST(NeedleTask, IsTheSameForTheSameSeedAndAnotherForAnother) {
  for (const NeedleKind kind : all_needle_kinds()) {
    const NeedleTask a = make_needle_task(kind, 5, 0.5), b = make_needle_task(kind, 5, 0.9);
    EXPECT_EQ(a.question, b.question);
    EXPECT_EQ(a.expected, b.expected);
    EXPECT_NE(make_needle_task(kind, 6, 0.5).expected, a.expected);
    EXPECT_EQ(needle_kind_from_name(needle_kind_name(kind)), kind);
    EXPECT_EQ(a.needles.empty(), kind == NeedleKind::kControl);
    ASSERT_EQ(a.needles.size(), b.needles.size());
    for (size_t i = 0; i < a.needles.size(); ++i) {
      EXPECT_EQ(a.needles[i].text, b.needles[i].text);
      EXPECT_EQ(a.needles[i].depth == b.needles[i].depth, i > 0);
    }
  }
  expect_error(ErrorKind::kUsage, "got haystack", [] { needle_kind_from_name("haystack"); });
}

TEST(NeedleTask, ItsNumbersAndSentencesAreAllDifferent) {
  for (const NeedleKind kind : all_needle_kinds()) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const NeedleTask task = make_needle_task(kind, seed, 0.5);
      std::set<std::string> numbers, sentences;
      for (const auto& list : {task.expected, task.decoys}) {
        for (const std::string& number : list) {
          EXPECT_TRUE(numbers.insert(number).second);
          EXPECT_GE(number.size(), 6u);
          EXPECT_LE(number.size(), 8u);
        }
      }
      for (const auto& needle : task.needles) {
        // What the needle is about, without its number: asked twice, it would have two answers.
        const bool one_place = kind == NeedleKind::kMultiValue;
        const std::string about = needle.text.substr(0, needle.text.rfind(" is "));
        EXPECT_TRUE(one_place || sentences.insert(about).second) << needle.text;
      }
    }
  }
}

TEST(NeedleTask, TwoHopsAreOneNameThatStandsForAnother) {
  const NeedleTask task = make_needle_task(NeedleKind::kTwoHop, 3, 0.9);
  ASSERT_EQ(task.needles.size(), 2u);
  EXPECT_EQ(task.needles[0].depth, 0.9);
  const auto named = between(task.needles[0].text, "cipher ", " ");
  const auto asked = between(task.question, "cipher ", " ");
  ASSERT_TRUE(named && asked);
  EXPECT_NE(*named, *asked);
  EXPECT_EQ(task.needles[0].text,
            fmt::format("The cipher {} stands for {}.", *named, task.expected[0]));
  EXPECT_EQ(
      task.needles[1].text,
      fmt::format("The cipher {} stands for the same number as the cipher {}.", *asked, *named));
}

TEST(NeedleTask, AnAnswerCountsByItsNumbersAlone) {
  NeedleTask task;
  task.expected = {"1234567"};
  task.decoys = {"7654321"};
  EXPECT_EQ(score_answer(task, "The number is 1234567."), 1);
  EXPECT_EQ(score_answer(task, "1,234,567"), 1);
  EXPECT_EQ(score_answer(task, "**1234567**, I think"), 1);
  EXPECT_EQ(score_answer(task, "12345678"), 0);
  EXPECT_EQ(score_answer(task, "0x1234567"), 1);
  EXPECT_EQ(score_answer(task, "123 4567"), 0);
  EXPECT_EQ(score_answer(task, "1234567 or 7654321"), 0);
  EXPECT_EQ(score_answer(task, ""), 0);
  task.expected = {"111111", "222222", "333333", "444444"};
  EXPECT_EQ(score_answer(task, "111111, 333333, 999999"), 0.5);
  EXPECT_EQ(score_answer(task, "111111,222222,333333,444444"), 1);
}

// The layouts of bytes, and of a chat format with a tokenizer of its own.
class NeedlePrompts : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelConfig config = *random_shape("tiny").config;
    config.chunk = 512;
    write_random_model(context_, {config, {}}, *mixture_from_name("q8_0"), 1, folder_ / "m.gguf");
    model_ = Model::load((folder_ / "m.gguf").string());
    layouts_ = {byte_layout(), model_layout(model_->tokenizer(), model_->chat_format()),
                model_layout(model_->tokenizer(), ChatFormat::kNone)};
    for (PromptLayout& layout : layouts_) layout.chunk = 512;
  }

  TempFolder folder_;
  Context context_{2};
  std::unique_ptr<Model> model_;
  std::vector<PromptLayout> layouts_;
};

TEST_F(NeedlePrompts, FillTheirLengthExactlyWithEveryNeedleWholeAndInsideAChunk) {
  for (const PromptLayout& layout : layouts_) {
    Haystack hay = Haystack::made_up(layout);
    for (const NeedleKind kind : all_needle_kinds()) {
      for (const int64_t length : {6000, 6001, 9000}) {
        for (const double depth : {0.0, 0.37, 0.5, 1.0}) {
          const NeedleTask task = make_needle_task(kind, 3, depth, 16);
          const NeedlePrompt prompt = lay_out(layout, hay, task, length, false);
          ASSERT_EQ(static_cast<int64_t>(prompt.tokens.size()) + prompt.max_tokens, length);
          const std::string text = layout.decode(prompt.tokens);
          ASSERT_EQ(prompt.needles.size(), task.needles.size());
          for (size_t i = 0; i < task.needles.size(); ++i) {
            EXPECT_NE(text.find(task.needles[i].text), std::string::npos) << task.needles[i].text;
            EXPECT_NE(prompt.content.find(task.needles[i].text), std::string::npos);
            const auto [first, count] = prompt.needles[i];
            EXPECT_EQ(first / 512, (first + count - 1) / 512);
          }
          EXPECT_NE(prompt.content.find(task.question), std::string::npos);
          // Tokens of four bytes each are cut where they may.
          const bool whole = &layout != &layouts_.front();
          EXPECT_TRUE(!whole || text.find(task.question) != std::string::npos);
          if (task.needles.empty()) continue;
          // Where it was asked for, but for the end of a sentence or a border next to it.
          const double at = static_cast<double>(prompt.needles[0].first - prompt.first_body) /
                            static_cast<double>(prompt.tokens.size());
          EXPECT_NEAR(at, depth, 0.09) << needle_kind_name(kind);
        }
      }
    }
  }
}

TEST_F(NeedlePrompts, DifferOnlyWhereANeedleStands) {
  for (const PromptLayout& layout : layouts_) {
    Haystack hay = Haystack::made_up(layout);
    const NeedlePrompt a =
        lay_out(layout, hay, make_needle_task(NeedleKind::kSingle, 1, 0.2), 6000, false);
    const NeedlePrompt b =
        lay_out(layout, hay, make_needle_task(NeedleKind::kSingle, 1, 0.8), 6000, false);
    ASSERT_EQ(a.tokens.size(), b.tokens.size());
    const auto inside = [](const NeedlePrompt& p, int64_t i) {
      return i >= p.needles[0].first && i < p.needles[0].first + p.needles[0].count;
    };
    int64_t differ = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(a.tokens.size()); ++i) {
      if (inside(a, i) || inside(b, i)) continue;
      differ += a.tokens[i] != b.tokens[i];
    }
    EXPECT_EQ(differ, 0);
    EXPECT_NE(a.tokens, b.tokens);
  }
}

TEST_F(NeedlePrompts, MayLieAcrossABorderOnPurpose) {
  for (const PromptLayout& layout : layouts_) {
    Haystack hay = Haystack::made_up(layout);
    for (const double depth : {0.0, 0.5, 1.0}) {
      const NeedleTask task = make_needle_task(NeedleKind::kMultiKey, 1, depth);
      const NeedlePrompt prompt = lay_out(layout, hay, task, 6000, true);
      const auto [first, count] = prompt.needles[0];
      EXPECT_NE(first / 512, (first + count - 1) / 512);
    }
  }
  PromptLayout whole = byte_layout();
  Haystack hay = Haystack::made_up(whole);
  const NeedleTask task = make_needle_task(NeedleKind::kSingle, 1, 0.5);
  expect_error(ErrorKind::kUsage, "border", [&] { lay_out(whole, hay, task, 2000, true); });
  expect_error(ErrorKind::kUsage, "at least", [&] { lay_out(whole, hay, task, 64, false); });
}

TEST_F(NeedlePrompts, AreReadByAModelThatKeepsWhatTheyShare) {
  LocalAnswerer answerer(*model_, context_, {.context = 4096}, nullptr);
  Haystack hay = Haystack::made_up(answerer.layout());
  EXPECT_EQ(answerer.layout().chunk, 512);
  const NeedleTask deep = make_needle_task(NeedleKind::kSingle, 1, 1.0);
  const NeedlePrompt first = lay_out(answerer.layout(), hay, deep, 4096, false);
  EXPECT_EQ(answerer.answer(first).prompt_tokens, 4096 - first.max_tokens);
  const NeedleTask middle = make_needle_task(NeedleKind::kSingle, 1, 0.5);
  const NeedlePrompt second = lay_out(answerer.layout(), hay, middle, 4096, false);
  const NeedleAnswer answer = answerer.answer(second);
  // What is read again is the chunk that is touched, and the last one, which the answer looks at.
  EXPECT_LE(answer.prompt_tokens - answer.cached_tokens, 2 * 512);
  EXPECT_GT(answer.prompt_tokens - answer.cached_tokens, 512);
  std::atomic<bool> cancel{true};
  LocalAnswerer stopped(*model_, context_, {.context = 4096}, &cancel);
  expect_error(ErrorKind::kCancelled, "stopped", [&] { stopped.answer(first); });
}

TEST(Haystack, IsTheTextOfItsFilesAgainAndAgain) {
  const TempFolder folder;
  std::ofstream(folder / "a.txt") << "one two ";
  std::ofstream(folder / "b.txt") << "four";
  const std::vector<std::filesystem::path> files = {folder / "a.txt", folder / "b.txt"};
  const PromptLayout layout = byte_layout();
  Haystack hay = Haystack::from_files(layout, files);
  EXPECT_EQ(layout.decode(hay.tokens(7)), "one two fourone two fourone ");
  EXPECT_NE(Haystack::from_files(layout, std::span(files).first(1)).name(), hay.name());
  std::ofstream(folder / "empty.txt");
  const std::vector<std::filesystem::path> empty = {folder / "empty.txt"};
  expect_error(ErrorKind::kUsage, "text", [&] { Haystack::from_files(layout, empty); });
  const std::string made_up = layout.decode(Haystack::made_up(layout).tokens(100'000));
  EXPECT_EQ(made_up.find_first_of("0123456789"), std::string::npos);
}

TEST(Needle, AReaderWhoReadsAllFindsAllAndNobodyFindsWhatIsNotThere) {
  Reader reader;
  Haystack hay = Haystack::made_up(reader.layout());
  const NeedleGrid grid = small_grid();
  const NeedleSummary summary = summarise(grid, run_needles(grid, reader, hay, nullptr));
  for (const auto& [length, mean] : summary.by_length) {
    EXPECT_EQ(mean.recall(), 1) << length;
    EXPECT_EQ(mean.trials, 6 * 3 * 2);
  }
  EXPECT_EQ(summary.control.trials, 2 * 3 * 2);
  EXPECT_EQ(summary.control.recall(), 0);
  EXPECT_TRUE(reaches(summary, 1));
}

TEST(Needle, AReaderWhoForgetsTheBeginningIsSeenToForgetIt) {
  Reader reader(2500);
  Haystack hay = Haystack::made_up(reader.layout());
  NeedleGrid grid = small_grid();
  grid.kinds = {NeedleKind::kSingle};
  const NeedleSummary summary = summarise(grid, run_needles(grid, reader, hay, nullptr));
  const auto recall = [&](int64_t length, int64_t depth) {
    return summary.by_depth.at({NeedleKind::kSingle, length, depth}).recall();
  };
  EXPECT_EQ(recall(1024, 0), 0);
  EXPECT_EQ(recall(1024, 1), 1);
  EXPECT_EQ(recall(2048, 1), 0);
  EXPECT_EQ(recall(2048, 2), 1);
  EXPECT_FALSE(reaches(summary, 0.5));
  EXPECT_TRUE(reaches(summary, 1.0 / 3));
}

TEST(Needle, WhoAnswersTheControlReachesNothing) {
  NeedleSummary summary;
  summary.by_length[1024] = {.trials = 10, .sum = 10};
  summary.control = {.trials = 10, .sum = 0};
  EXPECT_TRUE(reaches(summary, 1));
  summary.control.sum = 1;
  EXPECT_FALSE(reaches(summary, 0));
  EXPECT_EQ(vouched_length(recall_map_of(summary, "m", 0.5), 0.5), 0);
}

TEST(Needle, NeighboursGoFromDeepToShallowAndFromShortToLong) {
  NeedleGrid grid = small_grid();
  grid.kinds = {NeedleKind::kSingle};
  const std::vector<NeedleCell> cells = cells_of(grid);
  ASSERT_EQ(cells.size(), 12u);
  EXPECT_EQ(cells[0], (NeedleCell{NeedleKind::kSingle, 1024, 2, 0}));
  EXPECT_EQ(cells[1], (NeedleCell{NeedleKind::kSingle, 1024, 2, 1}));
  EXPECT_EQ(cells[2], (NeedleCell{NeedleKind::kSingle, 1024, 1, 0}));
  EXPECT_EQ(cells[11], (NeedleCell{NeedleKind::kSingle, 2048, 0, 1}));
  grid.lengths = {1024, 1024};
  expect_error(ErrorKind::kUsage, "once", [&] { validate(grid); });
}

TEST(NeedleState, GoesOnWhereItStoppedAndRefusesOtherSettings) {
  const TempFolder folder;
  const auto path = folder / "state.jsonl";
  const NeedleGrid grid = small_grid();
  const boost::json::object settings{{"model", "a"}, {"seeds", 2}};
  const size_t all = cells_of(grid).size();
  Reader reader;
  Haystack hay = Haystack::made_up(reader.layout());
  {
    NeedleState state(path, settings);
    const Progress stop = [&](uint64_t done, uint64_t) {
      if (done == 10) throw_error(ErrorKind::kCancelled, "stopped");
    };
    expect_error(ErrorKind::kCancelled, "stopped",
                 [&] { run_needles(grid, reader, hay, &state, stop); });
    expect_error(ErrorKind::kLimit, "another process", [&] { NeedleState(path, settings); });
  }
  EXPECT_EQ(reader.asked, 10);
  // A crash in the middle of a line.
  std::ofstream(path, std::ios::app) << R"({"kind":"single","le)";
  {
    NeedleState state(path, settings);
    EXPECT_EQ(state.results().size(), 10u);
    const NeedleResults results = run_needles(grid, reader, hay, &state);
    EXPECT_EQ(results.size(), all);
    EXPECT_EQ(summarise(grid, results).by_length.at(1024).recall(), 1);
  }
  EXPECT_EQ(reader.asked, static_cast<int>(all));
  {
    NeedleState state(path, settings);
    EXPECT_EQ(run_needles(grid, reader, hay, &state).size(), all);
  }
  EXPECT_EQ(reader.asked, static_cast<int>(all));
  expect_error(ErrorKind::kUsage, "'seeds' 2, got 3", [&] {
    NeedleState(path, {{"model", "a"}, {"seeds", 3}});
  });
  const std::string before = read_file(path, 1 << 20);
  std::ofstream(path) << before.substr(0, before.size() - 2) << "\n";  // a line of no JSON
  expect_error(ErrorKind::kBadData, "line", [&] { NeedleState(path, settings); });
  std::ofstream(path) << "{}\n";
  expect_error(ErrorKind::kBadData, "version", [&] { NeedleState(path, settings); });
}

TEST(RecallMap, VouchesUpToTheFirstLengthThatFails) {
  RecallMap map{.model = "m",
                .threshold = 0.9,
                .lengths = {{512, 10, 1, {{"single", 1}}},
                            {1024, 10, 0.9, {}},
                            {2048, 10, 0.8, {}},
                            {4096, 10, 1, {}}},
                .control_trials = 10,
                .control_recall = 0};
  EXPECT_EQ(vouched_length(map, 0.9), 1024);
  EXPECT_EQ(vouched_length(map, 0.8), 4096);
  EXPECT_EQ(vouched_length(map, 0.95), 512);
  EXPECT_EQ(vouched_length({}, 0.5), 0);
  const TempFolder folder;
  save_recall_map(map, folder / "map.json");
  const RecallMap back = load_recall_map(folder / "map.json");
  EXPECT_EQ(back.model, "m");
  EXPECT_EQ(vouched_length(back, back.threshold), 1024);
  EXPECT_EQ(back.lengths[0].by_kind.at("single"), 1);
  EXPECT_EQ(back.control_trials, 10);
  const std::string good = read_file(folder / "map.json", 1 << 20);
  for (const auto& [from, to, words] :
       {std::tuple("\"length\":1024", "\"length\":512", "length"),
        std::tuple("\"trials\":10", "\"trials\":0", "trials"),
        std::tuple("recall_map\":1", "recall_map\":2", "version"),
        std::tuple("\"model\":\"m\"", "\"model\":3", "model"),
        std::tuple("\"threshold\":9E-1", "\"threshold\":2", "threshold")}) {
    std::string bad = good;
    const size_t at = bad.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << good;
    bad.replace(at, std::string_view(from).size(), to);
    std::ofstream(folder / "bad.json") << bad;
    expect_error(ErrorKind::kBadData, words, [&] { load_recall_map(folder / "bad.json"); });
  }
}

TEST(NeedleReport, SaysTheSameInEveryForm) {
  Reader reader(2500);
  Haystack hay = Haystack::made_up(reader.layout());
  const NeedleGrid grid = small_grid();
  const NeedleResults results = run_needles(grid, reader, hay, nullptr);
  const NeedleSummary summary = summarise(grid, results);
  const std::string csv = needle_csv(grid, summary);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 7 * 2 * 3);
  EXPECT_NE(csv.find("\nsingle,1024,0.0000,2,0.0000\n"), std::string::npos);
  EXPECT_NE(csv.find("\nsingle,1024,1.0000,2,1.0000\n"), std::string::npos);
  const boost::json::object json = needle_json(grid, summary, results, {}, 0.9);
  EXPECT_EQ(json.at("cells").as_array().size(), results.size());
  EXPECT_EQ(json.at("reached"), false);
  const std::string svg = needle_svg(grid, summary, "a <model>");
  EXPECT_EQ(svg.find("a <model>"), std::string::npos);
  EXPECT_NE(svg.find("single, 1024 tokens, depth 0%: 0% of 2 trials"), std::string::npos);
  EXPECT_NE(svg.find("single, 1024 tokens, depth 100%: 100% of 2 trials"), std::string::npos);
  const TempFolder folder;
  write_needle_png(folder / "map.png", grid, summary, "model");
  const std::string bytes = read_file(folder / "map.png", 1 << 20);
  const Image image = decode_image(std::as_bytes(std::span(bytes)), "map.png");
  EXPECT_NE(svg.find(fmt::format("width=\"{}\" height=\"{}\"", image.width, image.height)),
            std::string::npos);
}

TEST(NeedleEndpoint, RefusesWhatCannotBeAsked) {
  const auto make = [](std::string url, std::string key = "", double timeout = 1) {
    EndpointAnswerer({std::move(url), "m", std::move(key), timeout}, byte_layout(), nullptr);
  };
  expect_error(ErrorKind::kUsage, "http", [&] { make("file:///etc/hostname"); });
  expect_error(ErrorKind::kUsage, "control", [&] { make("http://x", "a\r\nHost: y"); });
  expect_error(ErrorKind::kUsage, "timeout", [&] { make("http://x", "", 0); });
}

}  // namespace
}  // namespace drover
