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
  std::string context_file, save_context;
  int64_t prompt_tokens = 0;
  bool json = false;
  bool quiet = false;

  void operator()() const;
  std::string read_prompt() const;
  std::vector<Token> continue_text(const Tokenizer& tokenizer, std::span<const Part> parts) const;
};

std::string Run::read_prompt() const {
  if (prompt && *prompt != "-") {
    if (prompt->empty() && !(raw && !context_file.empty()))
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

// What a context file keeps, as the beginning of a prompt. Its pictures are known by name alone.
Prompt text_of(const ContextFile& file, Token patch) {
  const TextView text = file.text();
  Prompt out{{text.tokens.begin(), text.tokens.end()}};
  for (const PlacedPicture& p : text.pictures) {
    auto picture = std::make_shared<EncodedPicture>();
    picture->hash = p.hash;
    const auto its =
        text.tokens.subspan(static_cast<size_t>(p.first), static_cast<size_t>(p.end - p.first));
    picture->tokens.per_tile = std::count(its.begin(), its.end(), patch);
    out.pictures.push_back(std::move(picture));
  }
  return out;
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

  EngineOptions engine_options = model_flags.engine_options();
  std::shared_ptr<const ContextFile> known;
  double context_seconds = 0;
  if (!context_file.empty()) {
    if (!system.empty()) {
      throw Error(ErrorKind::kUsage, "system: the text of the context file has begun already",
                  "give --system when the file is made");
    }
    const auto opening = std::chrono::steady_clock::now();
    known =
        ContextFile::open(context_file, context_identity(*model, engine_options), context->threads);
    context_seconds = seconds_since(opening);
    if (known->damaged_header())
      warn("the context file's newest save is lost; this is the one before");
  }
  if (!save_context.empty()) check_can_create(save_context);

  const Pictures pictures(*model, images);
  const std::vector<Part> parts = place_pictures(text, pictures.tokens());
  Prompt shown;
  if (known) {
    shown =
        text_of(*known, model->has_vision() ? model->vision().config.patch_token.value_or(-1) : -1);
    std::vector<Token> next;
    if (format == ChatFormat::kNone) {
      append_parts(tokenizer, parts, special, next);
    } else {
      next = render_next_turn(format, tokenizer, {"user", parts});
    }
    shown.tokens.insert(shown.tokens.end(), next.begin(), next.end());
    if (engine_options.context == 0) {
      // Room for what is known, and for as much talk as there would be without it.
      engine_options.context = std::min(model->config().context, known->length() + 32768);
    }
  } else if (format == ChatFormat::kNone) {
    shown.tokens = continue_text(tokenizer, parts);
  } else {
    std::vector<Message> messages;
    if (!system.empty()) messages.push_back({"system", system});
    messages.push_back({"user", parts});
    shown.tokens = render_chat(format, tokenizer, messages, /*add_generation_prompt=*/true);
  }

  if (prompt_tokens != 0) {
    const int64_t got = static_cast<int64_t>(shown.tokens.size());
    if (prompt_tokens < 1 || prompt_tokens > got || !images.empty()) {
      throw_error(ErrorKind::kUsage, "prompt-tokens: expected 1 to {}, and no picture, got {}", got,
                  prompt_tokens);
    }
    shown.tokens.resize(static_cast<size_t>(prompt_tokens));
  }

  if (map) warn_beyond(*map, static_cast<int64_t>(shown.tokens.size()));
  Engine engine(*model, *context, engine_options);
  engine.expect_room(static_cast<int64_t>(shown.tokens.size()));
  if (known) {
    const auto adopting = std::chrono::steady_clock::now();
    engine.adopt(known);
    context_seconds += seconds_since(adopting);
  }
  const auto looking = std::chrono::steady_clock::now();
  engine.call([&] {
    for (auto& picture : pictures.encode(*model, *context)) {
      shown.pictures.push_back(std::move(picture));
    }
  });
  const double picture_seconds = seconds_since(looking);
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
    answer = engine.generate(shown, options, listener);
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
    out["cached_tokens"] = answer.cached_tokens;
    if (known) out["context_seconds"] = context_seconds;
    out["answer_tokens"] = answer.tokens.size();
    out["prompt_seconds"] = answer.prompt_seconds;
    out["answer_seconds"] = answer.answer_seconds;
    if (answer.visits.seen > 0) {
      out["pages_seen"] = answer.visits.seen;
      out["pages_visited"] = answer.visits.visited;
      out["attention_kept"] = answer.visits.kept;
    }
    print_out(boost::json::serialize(out) + '\n');
  } else {
    print_out("\n");
    if (!quiet && ::isatty(STDERR_FILENO) == 1) fmt::print(stderr, "[{}]\n", speed_line(answer));
  }
  // The answer is there, whatever becomes of the file.
  if (!save_context.empty()) {
    shown.tokens.insert(shown.tokens.end(), answer.tokens.begin(), answer.tokens.end());
    // The last token was said and not read: nothing hung on it yet.
    GenerateOptions read_only = options;
    read_only.max_tokens = 0;
    if (static_cast<int64_t>(shown.tokens.size()) <= engine.context()) {
      engine.generate(shown, read_only);
    }
    engine.save(save_context, shown);
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
  run->model_flags.add_lora(*command);
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
  command->add_option("--prompt-tokens", run->prompt_tokens,
                      "Read only so many tokens, the first of the prompt");
  const std::string kept = "Reading once";
  command
      ->add_option(
          "--save-context", run->save_context,
          "Keep what was read and said in this file; one that has its beginning is appended\n"
          "to. With --max-tokens 0 the prompt is only read")
      ->type_name("FILE")
      ->group(kept);
  command
      ->add_option(
          "--context-file", run->context_file,
          "Go on after what this file keeps, of the same model and --cache-type; the prompt\n"
          "is the next turn, or with --raw what follows")
      ->type_name("FILE")
      ->group(kept);
  command->add_flag("--json", run->json, "Print one JSON object when done");
  command->add_flag("-q,--quiet", run->quiet, "No line about speed");
  run->model_flags.add_machine(*command);
  run->model_flags.add_engine(*command);
  run->sampling.add(*command);
  command->callback([run] { (*run)(); });
}

}  // namespace drover
