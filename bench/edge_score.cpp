// edge_score MODEL: asks a model what recipes/edge/score.json lists, and prints shares of right
// answers beside their controls (train/question_score.h) as a Markdown table.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <exception>
#include <optional>

#include "base/file_writer.h"
#include "base/progress.h"
#include "formats/json.h"
#include "model/model.h"
#include "train/question_score.h"
#include "train/sources.h"

namespace drover {
namespace {

struct Flags {
  std::string model;
  std::string tests = "recipes/edge/score.json";
  std::string json;
  std::vector<std::string> only;
  int64_t examples = 0;
  int threads = 0;
  uint64_t seed = 1;
};

std::string percent(double share) { return share < 0 ? "" : fmt::format("{:.1f} %", 100 * share); }

std::string row(const std::string& name, std::optional<double> aim, const QuestionScore& score) {
  const Interval sure = interval_95(score.right, score.asked);
  return fmt::format("| {} | {} | {} | {:.1f} to {:.1f} % | {} | {} | {} | {} |\n", name,
                     score.asked, percent(score.right), 100 * sure.low, 100 * sure.high,
                     aim ? fmt::format("{:.0f} %", 100 * *aim) : "", percent(score.without_picture),
                     percent(score.other_picture), percent(score.most_frequent));
}

boost::json::object report(const std::string& name, std::optional<double> aim,
                           const QuestionScore& score) {
  boost::json::object out{{"name", name},
                          {"asked", score.asked},
                          {"right", score.right},
                          {"most_frequent_answer", score.most_frequent}};
  if (score.without_picture >= 0) {
    out["without_picture"] = score.without_picture;
    out["other_picture"] = score.other_picture;
  }
  if (aim) out["aim"] = *aim;
  boost::json::array misses;
  for (const auto& miss : score.misses) {
    misses.push_back(
        {{"question", miss.question}, {"expected", miss.expected}, {"answer", miss.answer}});
  }
  out["misses"] = std::move(misses);
  return out;
}

int run(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Asks a model held-out questions; prints shares of right answers as a Markdown table");
  app.add_option("model", flags.model, "The model")->required();
  app.add_option("--tests", flags.tests, "What is asked")->capture_default_str();
  app.add_option("--only", flags.only, "Names of tests; all if none is given");
  app.add_option("--examples", flags.examples, "Of each test; 0: as many as it says");
  app.add_option("--seed", flags.seed, "Of the examples")->capture_default_str();
  app.add_option("-t,--threads", flags.threads, "0: the physical cores")->capture_default_str();
  app.add_option("--json", flags.json, "A file for everything, some of the misses too");
  CLI11_PARSE(app, argc, argv);

  const boost::json::object root = read_json_object(flags.tests);
  const std::filesystem::path folder = std::filesystem::path(flags.tests).parent_path();
  const auto model = Model::load(flags.model);
  Context context(flags.threads > 0 ? flags.threads : physical_cores());
  Engine engine(*model, context, {.context = 32768});
  std::optional<PictureEncoder> encoder;
  engine.call([&] {
    if (model->has_vision()) encoder.emplace(*model, context, /*budget=*/int64_t{64} << 20);
  });

  boost::json::array results;
  std::string table =
      "| what | asked | right | 95 % interval | aim | without picture | another picture | most "
      "frequent answer |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  const JsonFields top(root, flags.tests);
  const boost::json::value* tests = top.find("tests");
  if (tests == nullptr || !tests->is_array()) {
    throw_error(ErrorKind::kBadData, "{}: expected an array 'tests'", flags.tests);
  }
  for (const boost::json::value& entry : tests->get_array()) {
    if (!entry.is_object()) throw_error(ErrorKind::kBadData, "{}: expected objects", flags.tests);
    const JsonFields test(entry.get_object(), flags.tests);
    const std::string name(test.required_text("name"));
    const bool wanted = flags.only.empty() ||
                        std::find(flags.only.begin(), flags.only.end(), name) != flags.only.end();
    if (!wanted) continue;
    const SourceContext sources{&model->tokenizer(), model->chat_format(),
                                model->has_vision() ? &model->vision().config : nullptr, folder,
                                test.boolean("held_out").value_or(true)};
    const auto source = make_source(test.required_fields("source").object(), sources);
    if (!source) throw_error(ErrorKind::kBadData, "{}: {}: nothing is held out", flags.tests, name);
    QuestionOptions options{.seed = flags.seed};
    options.examples =
        flags.examples > 0 ? flags.examples : test.integer("examples").value_or(options.examples);
    options.length = test.integer("length").value_or(options.length);
    ProgressBar bar(name, "questions");
    const QuestionScore score =
        score_questions(engine, encoder ? &*encoder : nullptr, model->tokenizer(), *source, options,
                        bar.callback());
    const auto aim = test.number("aim");
    results.push_back(report(name, aim, score));
    table += row(name, aim, score);
  }
  if (results.empty()) throw_error(ErrorKind::kUsage, "--only: no test has such a name");
  if (!flags.json.empty()) write_file(flags.json, boost::json::serialize(results) + "\n");
  std::fputs(table.c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) try {
  return drover::run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "edge_score: %s\n", error.what());
  return 1;
}
