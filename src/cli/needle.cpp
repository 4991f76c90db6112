// drover needle MODEL: how far a model's memory can be trusted.

#include "eval/needle.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>

#include "base/file_writer.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/quantities.h"
#include "eval/needle_endpoint.h"
#include "eval/needle_local.h"
#include "eval/needle_report.h"
#include "model/vocabulary_source.h"

namespace drover {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

struct Needle {
  ModelFlags model_flags;  // MODEL: with an endpoint, what it calls the model
  std::string lengths = "1K,4K,8K";
  std::vector<std::string> kinds = {"control", "single"};
  NeedleGrid grid;
  std::vector<fs::path> haystack;
  std::optional<double> threshold;
  std::string endpoint, api_key_env, tokenizer;
  double timeout = 600;
  std::string json_file, csv_file, svg_file, png_file, map_file, state_file;

  void operator()() const;

 private:
  NeedleGrid choose_grid() const;
  void check() const;
  PromptLayout endpoint_layout() const;
  void run(const NeedleGrid& grid, NeedleAnswerer& answerer, const std::string& model) const;
};

NeedleGrid Needle::choose_grid() const {
  NeedleGrid out = grid;
  out.lengths = parse_token_list("lengths", lengths);
  for (const std::string& name : kinds) {
    if (name == "all") {
      out.kinds = all_needle_kinds();
      break;
    }
    out.kinds.push_back(needle_kind_from_name(name));
  }
  validate(out);
  return out;
}

// Before long work.
void Needle::check() const {
  if (threshold && !(*threshold >= 0 && *threshold <= 1)) {
    throw_error(ErrorKind::kUsage, "threshold: expected 0 to 1, got {}", *threshold);
  }
  if (endpoint.empty() && !(tokenizer.empty() && api_key_env.empty())) {
    throw_error(ErrorKind::kUsage,
                "tokenizer, api-key-env: expected an --endpoint that they are for");
  }
  for (const std::string& file : {json_file, csv_file, svg_file, png_file, map_file, state_file}) {
    if (!file.empty()) check_can_create(file);
  }
}

PromptLayout Needle::endpoint_layout() const {
  if (tokenizer.empty()) return byte_layout();
  // A user's turn is what is sent; the endpoint puts its own format around it.
  PromptLayout out = model_layout(load_tokenizer(tokenizer), ChatFormat::kNone);
  out.render = out.encode;
  return out;
}

// The answers that are kept, or told again, are those to the very same questions.
json::object settings_of(const NeedleGrid& grid, const std::string& model,
                         const std::string& endpoint, const std::string& cache_type,
                         const Haystack& haystack) {
  json::array kinds, lengths(grid.lengths.begin(), grid.lengths.end());
  for (const NeedleKind kind : grid.kinds) kinds.push_back(json::string(needle_kind_name(kind)));
  return {{"model", as_utf8(model)},
          {"endpoint", as_utf8(endpoint)},
          {"cache_type", cache_type},
          {"haystack", haystack.name()},
          {"lengths", lengths},
          {"depths", grid.depths},
          {"seeds", grid.seeds},
          {"kinds", kinds},
          {"across_border", grid.across_border},
          {"seed", static_cast<int64_t>(grid.seed)}};
}

std::string table_text(const NeedleGrid& grid, const NeedleSummary& summary) {
  std::vector<int64_t> lengths = grid.lengths;
  std::sort(lengths.begin(), lengths.end());
  std::string text = "| recall |", line = "| --- |";
  for (const int64_t length : lengths) {
    text += fmt::format(" {} |", length_text(length));
    line += " ---: |";
  }
  text += "\n" + line + "\n";
  for (const NeedleKind kind : grid.kinds) {
    text += fmt::format("| {} |", needle_kind_name(kind));
    for (const int64_t length : lengths) {
      text += fmt::format(" {:.1f} % |", 100 * summary.by_kind.at({kind, length}).recall());
    }
    text += "\n";
  }
  const int64_t control = std::count(grid.kinds.begin(), grid.kinds.end(), NeedleKind::kControl);
  if (static_cast<int64_t>(grid.kinds.size()) - control > 1) {
    text += "| all but the control |";
    for (const int64_t length : lengths) {
      text += fmt::format(" {:.1f} % |", 100 * summary.by_length.at(length).recall());
    }
    text += "\n";
  }
  return text;
}

void Needle::run(const NeedleGrid& grid, NeedleAnswerer& answerer, const std::string& model) const {
  Haystack hay = haystack.empty() ? Haystack::made_up(answerer.layout())
                                  : Haystack::from_files(answerer.layout(), haystack);
  const json::object settings = settings_of(grid, model, endpoint, model_flags.cache_type, hay);
  std::optional<NeedleState> state;
  if (!state_file.empty()) state.emplace(state_file, settings);
  NeedleResults results;
  {
    ProgressBar bar("needles", "trials");
    results =
        run_needles(grid, answerer, hay, state ? &*state : nullptr, cancellable(bar.callback()));
  }
  const NeedleSummary summary = summarise(grid, results);
  const double limit = threshold.value_or(kDefaultThreshold);
  const RecallMap map = recall_map_of(summary, model, limit);
  const std::string title = fmt::format("{}: needles found, by length and depth", printable(model));
  if (!json_file.empty()) {
    write_file(json_file,
               json::serialize(needle_json(grid, summary, results, settings, limit)) + '\n');
  }
  if (!csv_file.empty()) write_file(csv_file, needle_csv(grid, summary));
  if (!svg_file.empty()) write_file(svg_file, needle_svg(grid, summary, title));
  if (!png_file.empty()) write_needle_png(png_file, grid, summary, title);
  if (!map_file.empty()) save_recall_map(map, map_file);

  std::string text = table_text(grid, summary);
  text += fmt::format("\n{} depths, {} seeds: {} trials of each kind and length.\n", grid.depths,
                      grid.seeds, grid.depths * grid.seeds);
  if (!map.lengths.empty()) {
    const int64_t vouched = vouched_length(map, limit);
    text += vouched == 0 ? fmt::format("No length reaches {:.0f} %.\n", 100 * limit)
                         : fmt::format("At least {:.0f} % up to {} tokens.\n", 100 * limit,
                                       grouped(vouched));
  }
  print_out(text);
  if (!endpoint.empty()) {
    for (const int64_t length : grid.lengths) {
      NeedleMean counted;
      for (const auto& [cell, result] : results) {
        if (cell.length == length && result.prompt_tokens > 0) {
          counted.add(static_cast<double>(result.prompt_tokens));
        }
      }
      if (counted.trials > 0) {
        print_out(fmt::format("The endpoint counted {:.0f} tokens in prompts of {}.\n",
                              counted.recall(), length_text(length)));
      }
    }
  }
  if (summary.control.sum > 0) {
    warn("a control was answered: numbers are known from elsewhere, and recall means nothing");
  }
  if (threshold && !reaches(summary, *threshold)) throw Verdict{kVerdictNo};
}

void Needle::operator()() const {
  const NeedleGrid chosen = choose_grid();
  check();
  InterruptGuard interrupt;
  if (!endpoint.empty()) {
    std::string key;
    if (!api_key_env.empty()) {
      const char* value = std::getenv(api_key_env.c_str());
      if (value == nullptr || *value == '\0') {
        throw_error(ErrorKind::kUsage, "api-key-env: expected a key in ${}, it is not set",
                    printable(api_key_env));
      }
      key = value;
    }
    EndpointAnswerer answerer({endpoint, model_flags.model, key, timeout}, endpoint_layout(),
                              &InterruptGuard::flag());
    return run(chosen, answerer, model_flags.model);
  }
  const auto context = model_flags.make_context();
  const auto model = model_flags.load();
  EngineOptions options = model_flags.engine_options();
  options.context = *std::max_element(chosen.lengths.begin(), chosen.lengths.end());
  LocalAnswerer answerer(*model, *context, options, &InterruptGuard::flag());
  run(chosen, answerer, model->path().filename().string());
}

}  // namespace

void add_needle(CLI::App& app) {
  auto needle = std::make_shared<Needle>();
  CLI::App* command = app.add_subcommand(
      "needle", "Measure how far a model's memory can be trusted; exit code 3 below --threshold");
  needle->model_flags.add_model(*command);
  command
      ->add_option("--lengths", needle->lengths,
                   "Tokens of a prompt and its answer (K is 1,024, M a million)")
      ->type_name("LIST")
      ->capture_default_str();
  command
      ->add_option("--depths", needle->grid.depths,
                   "Depths from the text's beginning to its end, in even steps")
      ->capture_default_str();
  command
      ->add_option("--seeds", needle->grid.seeds, "Needles, each tried at every depth and length")
      ->capture_default_str();
  command
      ->add_option("--kinds", needle->kinds,
                   "control (the needle removed), single, multi-key, multi-value, near-duplicate,\n"
                   "variable-tracking, two-hop, or all")
      ->delimiter(',')
      ->type_name("LIST")
      ->default_str("control,single");
  command
      ->add_option("--haystack", needle->haystack,
                   "Text files to hide needles in; sentences made up here if unset; repeatable")
      ->type_name("FILE")
      ->allow_extra_args(false);
  command->add_flag("--across-border", needle->grid.across_border,
                    "Put the needle over a border between chunks, where a local layer forgets");
  command
      ->add_option("--threshold", needle->threshold,
                   "Exit code 3 if the recall over all kinds of any length is below, 0 to 1, or a\n"
                   "control was answered")
      ->type_name("X");
  command->add_option("-s,--seed", needle->grid.seed, "Of the numbers and places")
      ->capture_default_str();
  const std::string out = "Results";
  const auto file = [&](const char* flag, std::string& value, const char* help) {
    command->add_option(flag, value, help)->type_name("FILE")->group(out);
  };
  file("--state", needle->state_file, "Keep finished trials there, and go on from them");
  file("--json", needle->json_file, "Write everything as JSON");
  file("--csv", needle->csv_file, "Write the recall of each kind, length and depth");
  file("--svg", needle->svg_file, "Write a heat map");
  file("--png", needle->png_file, "Write the same as PNG");
  file("--recall-map", needle->map_file, "Write what run --recall-map warns by");
  const std::string group = "Endpoint";
  command
      ->add_option("--endpoint", needle->endpoint,
                   "An OpenAI-compatible endpoint to ask instead, such as http://host:8000/v1;\n"
                   "MODEL is then its name for the model")
      ->type_name("URL")
      ->group(group);
  command->add_option("--api-key-env", needle->api_key_env, "The variable that holds its key")
      ->type_name("NAME")
      ->group(group);
  command
      ->add_option("--tokenizer", needle->tokenizer,
                   "Count lengths with this model's tokenizer; four bytes a token if unset")
      ->type_name("MODEL")
      ->group(group);
  command->add_option("--timeout", needle->timeout, "Seconds for one answer")
      ->capture_default_str()
      ->group(group);
  needle->model_flags.add_machine(*command);
  command
      ->add_option("-b,--batch", needle->model_flags.batch,
                   "Tokens of a prompt that are computed together")
      ->group("Machine")
      ->capture_default_str();
  command
      ->add_option("--cache-type", needle->model_flags.cache_type,
                   "Cached keys and values: f32, bf16 or int8; f32 for f32 weights, else bf16")
      ->group("Machine");
  command->callback([needle] { (*needle)(); });
}

}  // namespace drover
