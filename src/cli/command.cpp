#include "cli/command.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <random>

#include "base/progress.h"
#include "cli/quantities.h"
#include "engine/advised_options.h"
#include "text/utf8.h"

namespace drover {

void ModelFlags::add_model(CLI::App& command) {
  command
      .add_option("model,-m,--model", model,
                  "A GGUF file, a Hugging Face folder, or a name in the local model folder")
      ->type_name("MODEL")
      ->required();
}

void ModelFlags::add_machine(CLI::App& command) {
  const std::string group = "Machine";
  command
      .add_option("-t,--threads", threads, "Threads to compute with; 0 means the physical cores")
      ->group(group)
      ->capture_default_str();
  command
      .add_option(
          "--isa", isa,
          "Instruction set: plain, avx2, avxvnni, avx512 or amx; the best there is if unset")
      ->group(group);
}

void ModelFlags::add_engine(CLI::App& command) {
  const std::string group = "Context";
  command
      .add_option("-c,--context,--ctx-size", context,
                  "Most tokens of a conversation (32K, 1M); 0: the model's own, at most 32768")
      ->type_name("TOKENS")
      ->transform(CLI::Validator(
          [](std::string& text) {
            const bool unit = text.size() > 1 && (text.back() == 'K' || text.back() == 'M');
            if (unit) text = std::to_string(parse_tokens("context", text));
            return std::string();
          },
          ""))
      ->group(group)
      ->capture_default_str();
  command.add_option("-b,--batch", batch, "Tokens of a prompt that are computed together")
      ->group(group)
      ->capture_default_str();
  command
      .add_option("--cache-type", cache_type,
                  "Cached keys and values: f32, bf16 or int8; f32 for f32 weights, else bf16")
      ->group(group);
  command
      .add_option(
          "--cache-memory", cache_memory,
          "Bytes of cached keys and values, all conversations together (8G, 512M); what\n"
          "is kept of earlier ones gives way. Unset: two of --context, or more in a quarter of\n"
          "the machine's memory")
      ->type_name("SIZE")
      ->group(group);
  command
      .add_option("--cache-dir", cache_dir,
                  "Keep the cache in a file there, for contexts larger than the memory")
      ->type_name("FOLDER")
      ->group(group);
  command
      .add_option(
          "--attention", attention,
          "How global layers read the past: exact; bounded, leaving out what is certain to\n"
          "hold less than --epsilon of the attention; budget, the --pages of 256 tokens that\n"
          "may count most")
      ->check(CLI::IsMember({"exact", "bounded", "budget"}))
      ->type_name("MODE")
      ->group(group)
      ->capture_default_str();
  command.add_option("--epsilon", epsilon, "Of --attention bounded")
      ->group(group)
      ->capture_default_str();
  command.add_option("--pages", pages, "Of --attention budget")
      ->group(group)
      ->capture_default_str();
  const std::string exact = "Exact shortcuts, for the comparison";
  command
      .add_flag("--no-dead-prefill", no_dead_prefill,
                "Compute all layers for tokens that nobody will ask about too")
      ->group(exact);
  command
      .add_flag("--no-chunk-reuse", no_chunk_reuse,
                "Read a chunk again that was read at another place")
      ->group(exact);
  command
      .add_flag("--absolute-positions", absolute_positions,
                "Rotate by positions in the text, not in the chunk")
      ->group(exact);
}

void ModelFlags::add_mmproj(CLI::App& command) {
  command
      .add_option("--mmproj", mmproj,
                  "A GGUF file with the model's vision encoder, if it is in one of its own")
      ->type_name("FILE");
}

void add_adapters(CLI::App& command, std::vector<std::string>& folders,
                  const std::string& description) {
  command.add_option("--lora", folders, description)->type_name("FOLDER")->allow_extra_args(false);
}

void ModelFlags::add_lora(CLI::App& command) {
  add_adapters(command, lora,
               "An adapter as PEFT writes it, whose part is added to the model's; may be given\n"
               "several times");
}

std::unique_ptr<Model> ModelFlags::load() const {
  ProgressBar bar("loading", "bytes");
  return Model::load(model, cancellable(bar.callback()), mmproj, lora);
}

std::unique_ptr<Context> ModelFlags::make_context() const {
  if (threads < 0 || threads > 1024) {
    throw_error(ErrorKind::kUsage, "threads: expected 0 to 1024, got {}", threads);
  }
  Isa chosen = detect_isa();
  if (!isa.empty()) {
    const auto named = isa_from_name(isa);
    if (!named)
      throw_error(ErrorKind::kUsage, "isa: expected plain, avx2, avxvnni, avx512 or amx, got {}",
                  isa);
    const auto available = available_isas();
    if (std::find(available.begin(), available.end(), *named) == available.end()) {
      throw_error(ErrorKind::kUnsupported, "isa: this processor has no {}, its best is {}", isa,
                  isa_name(chosen));
    }
    chosen = *named;
  }
  return std::make_unique<Context>(threads == 0 ? physical_cores() : threads, chosen);
}

EngineOptions ModelFlags::engine_options() const {
  EngineOptions options{.context = context, .batch = batch};
  if (!cache_memory.empty()) options.cache_memory = parse_bytes("cache-memory", cache_memory);
  options.cache_dir = cache_dir;
  options.shortcuts = {.dead_prefill = !no_dead_prefill, .positions_in_chunk = !absolute_positions};
  options.chunk_reuse = !no_chunk_reuse;
  if (attention != "exact") {
    if (!(epsilon >= 0 && epsilon < 1)) {
      throw_error(ErrorKind::kUsage, "epsilon: expected 0 or more and less than 1, got {}",
                  epsilon);
    }
    if (pages < 2) throw_error(ErrorKind::kUsage, "pages: expected at least 2, got {}", pages);
    const auto mode =
        attention == "bounded" ? PageChoice::Mode::kBounded : PageChoice::Mode::kBudget;
    options.choice = PageChoice{.mode = mode, .epsilon = epsilon, .pages = pages};
  }
  if (!cache_type.empty()) {
    options.cache_type = cache_type_from_name(cache_type);
    if (!options.cache_type) {
      throw_error(ErrorKind::kUsage, "cache type: expected f32, bf16 or int8, got {}", cache_type);
    }
  }
  return options;
}

namespace {

// CLI11 alone would wrap -1 round.
std::string is_seed(const std::string& text) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [parsed, code] = std::from_chars(text.data(), end, value);
  if (code == std::errc() && parsed == end) return {};
  return fmt::format("expected 0 to {}, got {}", ~uint64_t{0}, printable(text));
}

}  // namespace

void SamplingFlags::add(CLI::App& command) {
  const std::string group = "Sampling";
  command.add_option("--temp,--temperature", temperature, "0 takes the most probable token")
      ->group(group);
  command.add_option("--top-k", top_k, "Keep the k most probable tokens; 0 keeps all")
      ->group(group);
  command.add_option("--top-p", top_p, "Keep the fewest tokens that hold this much probability")
      ->group(group);
  command.add_option("--min-p", min_p, "Drop tokens less probable than this times the best")
      ->group(group);
  command
      .add_option("--repeat-penalty", repeat_penalty, "Above 1, recent tokens become less likely")
      ->group(group);
  command.add_option("--repeat-last-n", repeat_last_n, "How many tokens are recent; -1 means all")
      ->group(group);
  command.add_option("--presence-penalty", presence_penalty, "Off the logit of what was said")
      ->group(group);
  command
      .add_option("--frequency-penalty", frequency_penalty, "The same, for each time it was said")
      ->group(group);
  command.add_option("-s,--seed", seed, "The same seed gives the same answer")
      ->group(group)
      ->check(is_seed, "");
  command
      .add_option("-n,--max-tokens,--n-predict", max_tokens,
                  "Most tokens of an answer; -1: no limit")
      ->group(group)
      ->capture_default_str();
  command.add_option("--stop", stop, "A string that ends the answer; may be given several times")
      ->group(group)
      ->allow_extra_args(false);  // one each time: what follows may be the model
}

GenerateOptions SamplingFlags::options(const Model& model, ChatFormat format) const {
  GenerateOptions out = advised_options(model, format);
  SamplingOptions& s = out.sampling;
  s.temperature = temperature.value_or(s.temperature);
  s.top_k = top_k.value_or(s.top_k);
  s.top_p = top_p.value_or(s.top_p);
  s.min_p = min_p.value_or(s.min_p);
  s.repeat_penalty = repeat_penalty.value_or(s.repeat_penalty);
  s.repeat_last_n = repeat_last_n.value_or(s.repeat_last_n);
  s.presence_penalty = presence_penalty.value_or(s.presence_penalty);
  s.frequency_penalty = frequency_penalty.value_or(s.frequency_penalty);
  s.seed = seed ? *seed : std::random_device{}();
  if (max_tokens < -1) {
    throw_error(ErrorKind::kUsage, "max-tokens: expected -1 or more, got {}", max_tokens);
  }
  out.max_tokens = max_tokens;
  out.stop = stop;
  return out;
}

ChatFormat choose_chat_format(const Model& model, const std::string& name) {
  return name.empty() ? model.chat_format() : chat_format_from_name(name);
}

namespace {

std::atomic<bool> interrupted{false};
std::atomic<int> last_signal{SIGINT};
std::atomic<bool> ignore_repeated_interrupts{false};

extern "C" void on_interrupt(int signal) {
  last_signal = signal;
  const bool again = interrupted.exchange(true);
  if (again && !(signal == SIGINT && ignore_repeated_interrupts)) ::_exit(128 + signal);
}

}  // namespace

const std::atomic<bool>& InterruptGuard::flag() { return interrupted; }
int InterruptGuard::signal() { return last_signal; }

InterruptGuard::InterruptGuard(Repeat repeat) {
  interrupted = false;
  ignore_repeated_interrupts = repeat == Repeat::kIgnored;
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;  // output that waits for a slow reader must not fail
  sigaction(SIGINT, &action, &old_interrupt_);
  sigaction(SIGTERM, &action, &old_terminate_);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &old_interrupt_, nullptr);
  sigaction(SIGTERM, &old_terminate_, nullptr);
}

Progress cancellable(Progress progress) {
  return [progress = std::move(progress)](uint64_t done, uint64_t total) {
    if (interrupted) throw_error(ErrorKind::kCancelled, "stopped");
    progress(done, total);
  };
}

void print_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw_error(ErrorKind::kIo, "standard output: cannot write: {}", strerror(errno));
  }
}

void warn(std::string_view sentence) {
  std::fputs(fmt::format("drover: warning: {}\n", printable(sentence, 10000)).c_str(), stderr);
}

void check_can_create(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  const std::string name = printable(path.string(), 300);
  std::error_code ignored;
  if (path.empty()) throw_error(ErrorKind::kUsage, "output: expected the name of a file, got none");
  if (fs::is_directory(path, ignored)) {
    throw Error(ErrorKind::kCannotWrite,
                fmt::format("{}: expected a file to write, got a folder", name),
                "give the name of a file in it");
  }
  const fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (!fs::is_directory(folder, ignored)) {
    throw Error(ErrorKind::kCannotWrite,
                fmt::format("{}: cannot create: there is no folder {}", name,
                            printable(folder.string(), 300)),
                "make the folder first");
  }
  if (::access(folder.c_str(), W_OK | X_OK) != 0) throw_errno("create", path.string(), errno);
}

std::string speed_line(const Answer& answer) {
  const int64_t read = answer.prompt_tokens - answer.cached_tokens;
  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  // What budget mode promises to tell.
  const std::string kept =
      answer.visits.seen > 0
          ? fmt::format("; {} of {} pages visited, at least {:.4f} of the attention kept",
                        answer.visits.visited, answer.visits.seen, answer.visits.kept)
          : "";
  return fmt::format(
      "prompt {} tokens ({} from the cache), {:.1f} tokens/s; answer {} tokens, {:.1f} tokens/s; "
      "{}{}",
      answer.prompt_tokens, answer.cached_tokens, rate(read, answer.prompt_seconds),
      answer.tokens.size(), rate(static_cast<int64_t>(answer.tokens.size()), answer.answer_seconds),
      finish_reason_name(answer.finish), kept);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace drover
