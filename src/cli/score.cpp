// drover score MODEL: perplexity of a text, or the logits of given tokens.

#include "eval/score.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <iostream>
#include <iterator>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/pictures.h"
#include "eval/collect_importance.h"

namespace drover {
namespace {

struct Score {
  ModelFlags model_flags;
  std::string text_file;
  std::string tokens;
  std::string logits_file;
  std::string importance_file;
  std::vector<std::string> images;
  bool json = false;

  void operator()() const;
  void perplexity(const Model& model, Context& context, Engine& engine,
                  const ImportanceCollector* seen) const;
};

// "1,2,3" with any white space.
std::vector<Token> parse_tokens(const std::string& text) {
  std::vector<Token> out;
  const char* p = text.data();
  const char* end = p + text.size();
  const auto skip = [&](auto what) {
    while (p < end && what(*p)) ++p;
  };
  const auto separates = [](char c) {
    return c == ',' || std::isspace(static_cast<unsigned char>(c));
  };
  for (skip(separates); p < end; skip(separates)) {
    Token token;
    const auto [next, error] = std::from_chars(p, end, token);
    if (error != std::errc() || (next < end && !separates(*next))) {
      throw_error(ErrorKind::kUsage, "tokens: expected numbers with commas between, got '{}'",
                  printable(std::string_view(p, end - p), 40));
    }
    out.push_back(token);
    p = next;
  }
  if (out.empty()) throw_error(ErrorKind::kUsage, "tokens: expected at least one, got none");
  return out;
}

void Score::perplexity(const Model& model, Context& context, Engine& engine,
                       const ImportanceCollector* seen) const {
  const std::string text = text_file == "-"
                               ? std::string(std::istreambuf_iterator<char>(std::cin), {})
                               : read_file(text_file, size_t{1} << 30);
  const Tokenizer& tokenizer = model.tokenizer();
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const Pictures pictures(model, images);
  Prompt shown;
  append_parts(tokenizer, place_pictures(text, pictures.tokens()), /*special=*/false, shown.tokens);
  if (!images.empty()) {
    engine.expect_room(static_cast<int64_t>(shown.tokens.size()) + vocabulary.add_bos);
  }
  shown.pictures = pictures.encode(model, context);
  TextScore score;
  {
    ProgressBar bar("scoring", "tokens");
    score = score_text(engine, tokenizer, shown, vocabulary.add_bos ? vocabulary.bos : std::nullopt,
                       cancellable(bar.callback()));
  }
  std::vector<std::string> gaps;
  if (seen != nullptr) {
    Importance importance = seen->result();
    importance.dataset = text_file;
    importance.context = engine.context();
    importance.windows = score.windows;
    gaps = importance.gaps();
    for (const std::string& gap : gaps) warn(gap);
    importance.save(importance_file);
  }
  if (json) {
    boost::json::object out;
    out["model"] = as_utf8(model.path().filename().string());
    out["tokens"] = score.tokens;
    out["nll"] = score.nll;
    out["perplexity"] = score.perplexity();
    out["context"] = engine.context();
    if (seen != nullptr) {
      out["importance"] = as_utf8(importance_file);
      out["warnings"] = boost::json::value_from(gaps);
    }
    print_out(boost::json::serialize(out) + '\n');
  } else {
    print_out(fmt::format("perplexity {:.4f} over {} tokens (context {}, {:.4f} nats per token)\n",
                          score.perplexity(), score.tokens, engine.context(),
                          score.nll / static_cast<double>(score.tokens)));
  }
}

void Score::operator()() const {
  if (text_file.empty() == tokens.empty()) {
    throw_error(ErrorKind::kUsage, "score: expected either --text FILE or --tokens LIST");
  }
  if (tokens.empty() != logits_file.empty()) {
    throw_error(ErrorKind::kUsage, "score: expected --tokens LIST and --logits FILE together");
  }
  if (!importance_file.empty() && text_file.empty()) {
    throw_error(ErrorKind::kUsage, "score: expected --text FILE with --importance FILE");
  }
  if (text_file == "-" && std::count(images.begin(), images.end(), "-") > 0) {
    throw_error(ErrorKind::kUsage, "score: standard input cannot be both the text and a picture");
  }
  const std::vector<Token> ids = tokens.empty() ? std::vector<Token>() : parse_tokens(tokens);
  for (const std::string& file : {logits_file, importance_file}) {
    if (!file.empty()) check_can_create(file);
  }
  const auto context = model_flags.make_context();
  InterruptGuard interrupt;
  const auto model = model_flags.load();
  for (const Token id : ids) {
    if (id < 0 || id >= model->config().vocab) {
      throw_error(ErrorKind::kUsage, "tokens: expected 0 to {}, got {}", model->config().vocab - 1,
                  id);
    }
  }
  EngineOptions options = model_flags.engine_options();
  // Given tokens are one window, however long, up to what the model was made for.
  if (options.context == 0 && !ids.empty()) {
    options.context = std::min<int64_t>(static_cast<int64_t>(ids.size()), model->config().context);
  }
  std::optional<ImportanceCollector> collector;
  if (!importance_file.empty()) options.observer = &collector.emplace(*context, *model);
  Engine engine(*model, *context, options);
  if (ids.empty()) return perplexity(*model, *context, engine, collector ? &*collector : nullptr);
  // The patch tokens of the list are the pictures' places.
  const Pictures pictures(*model, images);
  engine.expect_patches(ids, pictures.tokens());
  const Prompt shown{ids, pictures.encode(*model, *context)};
  {
    ProgressBar bar("scoring", "tokens");
    write_logits(engine, shown, logits_file, cancellable(bar.callback()));
  }
  if (json) {
    boost::json::object out;
    out["model"] = as_utf8(model->path().filename().string());
    out["tokens"] = ids.size();
    out["vocab"] = model->config().vocab;
    out["logits"] = as_utf8(logits_file);
    print_out(boost::json::serialize(out) + '\n');
  }
}

}  // namespace

void add_score(CLI::App& app) {
  auto score = std::make_shared<Score>();
  CLI::App* command = app.add_subcommand("score", "Measure how well a model predicts a text");
  score->model_flags.add_model(*command);
  command
      ->add_option("--text", score->text_file,
                   "Text file to find the perplexity of; - reads standard input")
      ->type_name("FILE");
  command->add_option("--tokens", score->tokens, "Token numbers with commas between, for --logits")
      ->type_name("LIST");
  command
      ->add_option("--logits", score->logits_file,
                   "Write the logits after each of --tokens as float32 [tokens, vocab], .npy")
      ->type_name("FILE");
  command
      ->add_option("--importance", score->importance_file,
                   "Also write how much each input matters on that text, for quantize --importance")
      ->type_name("FILE");
  add_images(*command, score->images,
             "A picture, before the text, at its <image>, or at the patch tokens of --tokens;\n"
             "repeatable");
  score->model_flags.add_mmproj(*command);
  score->model_flags.add_lora(*command);
  command->add_flag("--json", score->json, "Print one JSON object");
  score->model_flags.add_machine(*command);
  score->model_flags.add_engine(*command);
  command->callback([score] { (*score)(); });
}

}  // namespace drover
