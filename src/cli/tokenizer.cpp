// drover tokenizer train FILES: a vocabulary of one's own.

#include "text/tokenizer.h"

#include <boost/json.hpp>

#include "base/file_writer.h"
#include "base/progress.h"
#include "cli/command.h"
#include "formats/gzip.h"
#include "text/bpe_trainer.h"
#include "text/special_tokens.h"

namespace drover {
namespace {

namespace fs = std::filesystem;

struct TrainTokenizer {
  std::string action;
  std::vector<std::string> files;
  std::string out;
  std::string pattern = "llama4";
  std::string special = "default";
  BpeTraining training;
  bool json = false;

  void operator()() const {
    check_can_create(out);
    BpeTraining wanted = training;
    for (const PreTokenizer pre : {PreTokenizer::kLlama4, PreTokenizer::kLlama3,
                                   PreTokenizer::kGpt2, PreTokenizer::kSmolLm}) {
      if (pre_tokenizer_name(pre) == pattern) wanted.pre = pre;
    }
    wanted.special = control_tokens();
    BpeTrainer trainer(wanted);
    read_into(trainer);
    ProgressBar bar("joining", "tokens");
    const TrainedBpe trained = trainer.train(cancellable(bar.callback()));
    write_file(out, vocabulary_to_tokenizer_json(trained.vocabulary));
    report(trained);
  }

 private:
  std::vector<std::string> control_tokens() const {
    if (special == "default") return llama4_chat_tokens();
    if (special == "none" || special.empty()) return {};
    return CLI::detail::split(special, ',');
  }

  void read_into(BpeTrainer& trainer) const {
    uint64_t total = 0, done = 0;
    std::error_code ignored;
    for (const std::string& file : files) {
      const auto size = fs::file_size(file, ignored);
      if (!ignored) total += size;
    }
    ProgressBar bar("counting words", "bytes");
    const Progress progress = cancellable(bar.callback());
    for (const std::string& file : files) {
      trainer.add(read_unpacked(file, kMaxTextBytes));
      const auto size = fs::file_size(file, ignored);
      if (!ignored) done += size;
      progress(std::min(done, total), total);
    }
  }

  void report(const TrainedBpe& trained) const {
    const Vocabulary& v = trained.vocabulary;
    const auto size = static_cast<int64_t>(v.tokens.size());
    const double ratio = trained.tokens > 0 ? static_cast<double>(trained.bytes) /
                                                  static_cast<double>(trained.tokens)
                                            : 0;
    if (size < training.size) {
      warn(fmt::format("{}: {} tokens instead of {}: no other pair stands {} times in these texts",
                       out, size, training.size, training.min_frequency));
    }
    if (json) {
      print_out(boost::json::serialize(boost::json::object{
                    {"vocabulary", size},
                    {"merges", v.merges.size()},
                    {"bytes", trained.bytes},
                    {"words", trained.words},
                    {"distinct_words", trained.distinct_words},
                    {"tokens", trained.tokens},
                    {"bytes_per_token", ratio},
                }) +
                '\n');
    } else {
      print_out(fmt::format(
          "{}: {} tokens, {} of them by merges; {} bytes of text ({} words, {} different) are {} "
          "tokens, {:.2f} bytes a token\n",
          out, size, v.merges.size(), trained.bytes, trained.words, trained.distinct_words,
          trained.tokens, ratio));
    }
  }
};

}  // namespace

void add_tokenizer(CLI::App& app) {
  auto train = std::make_shared<TrainTokenizer>();
  CLI::App* command = app.add_subcommand("tokenizer", "Learn a vocabulary from texts");
  command->add_option("action", train->action, "What to do: train")
      ->type_name("ACTION")
      ->check(CLI::IsMember({"train"}))
      ->required();
  command->add_option("files", train->files, "Texts to learn from, plain or .gz")
      ->type_name("FILE")
      ->required();
  command->add_option("--vocab", train->training.size, "Tokens in all, control tokens included")
      ->check(CLI::Range(int64_t{256}, static_cast<int64_t>(kMaxVocabularySize)))
      ->type_name("TOKENS")
      ->capture_default_str();
  command->add_option("--out", train->out, "The tokenizer.json to write")
      ->type_name("FILE")
      ->required();
  command->add_option("--pattern", train->pattern, "How text is cut into words")
      ->check(CLI::IsMember({"llama4", "llama3", "gpt2", "smollm"}))
      ->type_name("PATTERN")
      ->capture_default_str();
  command
      ->add_option(
          "--special-tokens", train->special,
          "Control tokens: default, those of Llama 4's chats and pictures; none; or a list "
          "with commas between")
      ->type_name("LIST")
      ->capture_default_str();
  command
      ->add_option("--min-frequency", train->training.min_frequency,
                   "Pairs that stand less often are not joined")
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}))
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--json", train->json, "Print the result as JSON");
  command->callback([train] {
    const InterruptGuard guard;
    (*train)();
  });
}

}  // namespace drover
