// drover run MODEL [PROMPT]: one question, one answer.

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <iostream>
#include <iterator>
#include <optional>

#include "base/progress.h"
#include "cli/command.h"
#include "cli/pictures.h"
#include "cli/quantities.h"
#include "eval/recall_map.h"

namespace drover {
namespace {

struct Run {
  ModelFlags model_flags;
  SamplingFlags sampling;
  std::optional<std::string> prompt;
  std::vector<std::string> images;
  std::string system;
  std::string chat_format;
  std::string recall_map;
  bool raw = false;
  bool special = false;
  bool json = false;
  bool quiet = false;

  void operator()() const;
  std::string read_prompt() const;
  std::vector<Token> continue_text(const Tokenizer& tokenizer, std::span<const Part> parts) const;
};

std::string Run::read_prompt() const {
  if (prompt && *prompt != "-") {
    if (prompt->empty())
      throw_error(ErrorKind::kUsage, "prompt: expected a text, got an empty one");
    return *prompt;
  }
  if (std::count(images.begin(), images.end(), "-") > 0) {
    throw Error(ErrorKind::kUsage, "prompt: standard input is a picture already",
                "give the prompt as an argument");
  }
  if (!prompt && ::isatty(STDIN_FILENO) == 1) {
    throw Error(ErrorKind::kUsage, "prompt: expected a text, got none",
                "give it as an argument, or through a pipe; `drover chat` is for talking");
  }
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  // The newline that ends a file is not part of what was asked.
  if (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.empty()) {
    throw_error(ErrorKind::kUsage, "prompt: expected a text on standard input, got an empty one");
  }
  return text;
}

// The tokens of a text that is continued as it is.
std::vector<Token> Run::continue_text(const Tokenizer& tokenizer,
                                      std::span<const Part> parts) const {
  if (!system.empty()) {
    throw Error(ErrorKind::kUsage, "system: this model has no chat format to put it in",
                "put the text in the prompt, or choose a --chat-format");
  }
  std::vector<Token> tokens;
  append_parts(tokenizer, parts, special, tokens);
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const bool has_bos = !tokens.empty() && vocabulary.bos && tokens.front() == *vocabulary.bos;
  if (vocabulary.add_bos && vocabulary.bos && !has_bos)
    tokens.insert(tokens.begin(), *vocabulary.bos);
  return tokens;
}

// A prompt longer than the lengths at which the model was found to remember.
void warn_beyond(const RecallMap& map, int64_t tokens) {
  const int64_t vouched = vouched_length(map, map.threshold);
  if (tokens <= vouched) return;
  warn(
      fmt::format("the prompt has {} tokens, and the recall map vouches for {}: what stands in it "
                  "may be overlooked",
                  grouped(tokens), vouched == 0 ? "none" : grouped(vouched)));
}

void Run::operator()() const {
  const std::string text = read_prompt();
  std::optional<RecallMap> map;
  if (!recall_map.empty()) map = load_recall_map(recall_map);
  const auto context = model_flags.make_context();
  InterruptGuard interrupt;
  const auto model = model_flags.load();
  const Tokenizer& tokenizer = model->tokenizer();
  const ChatFormat format = raw ? ChatFormat::kNone : choose_chat_format(*model, chat_format);

  const Pictures pictures(*model, images);
  const std::vector<Part> parts = place_pictures(text, pictures.tokens());
  Prompt shown;
  if (format == ChatFormat::kNone) {
    shown.tokens = continue_text(tokenizer, parts);
  } else {
    std::vector<Message> messages;
    if (!system.empty()) messages.push_back({"system", system});
    messages.push_back({"user", parts});
    shown.tokens = render_chat(format, tokenizer, messages, /*add_generation_prompt=*/true);
  }

  if (map) warn_beyond(*map, static_cast<int64_t>(shown.tokens.size()));
  Session session(*model, *context, model_flags.session_options());
  session.expect_room(static_cast<int64_t>(shown.tokens.size()));
  const auto looking = std::chrono::steady_clock::now();
  shown.pictures = pictures.encode(*model, *context);
  const double picture_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - looking).count();
  GenerateOptions options = sampling.options(*model, format);
  options.show_special = special;
  Answer answer;
  {
    std::optional<ProgressBar> bar(std::in_place, "reading", "tokens");
    Listener listener{.prompt = bar->callback(), .text = {}, .cancel = &InterruptGuard::flag()};
    listener.text = [&](std::string_view piece) {
      bar.reset();
      if (!json) print_out(piece);
    };
    answer = session.generate(shown, options, listener);
  }

  if (json) {
    boost::json::object out;
    out["model"] = as_utf8(model->path().filename().string());
    out["text"] = answer.text;
    out["tokens"] = boost::json::array(answer.tokens.begin(), answer.tokens.end());
    out["finish_reason"] = finish_reason_name(answer.finish);
    out["seed"] = options.sampling.seed;
    out["prompt_tokens"] = answer.prompt_tokens;
    if (!images.empty()) out["picture_seconds"] = picture_seconds;
    out["answer_tokens"] = answer.tokens.size();
    out["prompt_seconds"] = answer.prompt_seconds;
    out["answer_seconds"] = answer.answer_seconds;
    print_out(boost::json::serialize(out) + '\n');
  } else {
    print_out("\n");
    if (!quiet && ::isatty(STDERR_FILENO) == 1) fmt::print(stderr, "[{}]\n", speed_line(answer));
  }
  if (answer.finish == FinishReason::kCancelled) throw_error(ErrorKind::kCancelled, "stopped");
}

}  // namespace

void add_run(CLI::App& app) {
  auto run = std::make_shared<Run>();
  CLI::App* command = app.add_subcommand("run", "Answer one prompt");
  run->model_flags.add_model(*command);
  // The first word without a flag is always MODEL, so the variable needs a flag before the prompt.
  command->get_option("--model")->description(
      "A GGUF file, Hugging Face folder or local name (with the variable, use -p)");
  command->add_option("prompt,-p,--prompt", run->prompt,
                      "What to ask; - or nothing reads standard input");
  add_images(
      *command, run->images,
      "A picture (JPEG, PNG, WebP; - is standard input), before the prompt or at its <image>;\n"
      "repeatable");
  run->model_flags.add_mmproj(*command);
  command->add_option("--system", run->system, "What the model is told before the prompt");
  command->add_flag("--raw", run->raw, "Continue the text as it is, without a chat format");
  command->add_option("--chat-format", run->chat_format,
                      "llama4, llama3, chatml or none; what the model's file says if unset");
  command
      ->add_option("--recall-map", run->recall_map,
                   "Warn of a prompt longer than this file of `drover needle` vouches for")
      ->type_name("FILE");
  command->add_flag("--special", run->special,
                    "Control tokens show in the answer; with --raw, their names in the prompt "
                    "become those tokens");
  command->add_flag("--json", run->json, "Print one JSON object when done");
  command->add_flag("-q,--quiet", run->quiet, "No line about speed");
  run->model_flags.add_machine(*command);
  run->model_flags.add_session(*command);
  run->sampling.add(*command);
  command->callback([run] { (*run)(); });
}

}  // namespace drover
