// What the subcommands share: their common flags, how they open a model, and how they print.
// One file per subcommand; each adds itself to the option tree and runs when it is chosen.
#pragma once

#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "kernels/context.h"
#include "model/model.h"
#include "text/utf8.h"

namespace drover {

// MODEL and the flags of the machine.
struct ModelFlags {
  std::string model;
  std::string mmproj;
  std::vector<std::string> lora;
  int threads = 0;  // 0: the physical cores
  std::string isa;  // empty: the best there is
  int64_t context = 0;
  int64_t batch = kDefaultBatch;
  std::string cache_type;
  std::string cache_memory;
  std::string cache_dir;
  std::string attention = "exact";
  float epsilon = 0.001f;
  int64_t pages = 64;
  bool no_dead_prefill = false, no_chunk_reuse = false, absolute_positions = false;

  void add_model(CLI::App& command);    // MODEL
  void add_machine(CLI::App& command);  // --threads, --isa
  void add_engine(CLI::App& command);   // --context, --batch, the cache, the shortcuts
  void add_mmproj(CLI::App& command);   // --mmproj
  void add_lora(CLI::App& command);     // --lora

  std::unique_ptr<Model> load() const;  // with a progress bar
  std::unique_ptr<Context> make_context() const;
  EngineOptions engine_options() const;
};

// --lora FOLDER, which may be given several times.
void add_adapters(CLI::App& command, std::vector<std::string>& folders,
                  const std::string& description);

// The flags of sampling. What the user does not set comes from the model's own advice, then from
// the family's.
struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p, repeat_penalty, presence_penalty,
      frequency_penalty;
  std::optional<int64_t> top_k, repeat_last_n;
  std::optional<uint64_t> seed;  // unset: drawn from the system, and reported
  int64_t max_tokens = -1;
  std::vector<std::string> stop;

  void add(CLI::App& command);
  GenerateOptions options(const Model& model, ChatFormat format) const;
};

// The chat format by name, or what the model's file says when the name is empty.
ChatFormat choose_chat_format(const Model& model, const std::string& name);

// While one of these lives, Ctrl-C and SIGTERM set the flag instead of ending the program, so that
// work can stop in order. A second signal ends it at once, but for Ctrl-C in a conversation, where
// an impatient second press must not cost what was said. A new guard starts with the flag cleared.
class InterruptGuard {
 public:
  enum class Repeat { kEnds, kIgnored };
  explicit InterruptGuard(Repeat repeat = Repeat::kEnds);
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  static const std::atomic<bool>& flag();
  // The signal that came last, SIGINT if none did.
  static int signal();

 private:
  struct sigaction old_interrupt_, old_terminate_;
};

// The same progress, and a kCancelled Error once the flag of an InterruptGuard is set.
Progress cancellable(Progress progress);

// Writes to standard output at once. Throws kIo when that fails.
void print_out(std::string_view text);

// Finds out before long work whether its result can be written: throws kCannotWrite when the folder
// is missing or the path is a folder itself, kPermission when the folder is not ours to write in.
void check_can_create(const std::filesystem::path& path);

// Thrown to end with an exit code of a command's own once all is said: no error, but not yes
// either.
struct Verdict {
  int code;
};
// The answer is no: what was asked does not fit, or a threshold was not reached.
inline constexpr int kVerdictNo = 3;

// A line on standard error about what may not be what was hoped for.
void warn(std::string_view sentence);

// "42.1 tokens/s"-style line about an answer, for standard error.
std::string speed_line(const Answer& answer);

double seconds_since(std::chrono::steady_clock::time_point start);

void add_run(CLI::App& app);
void add_chat(CLI::App& app);
void add_serve(CLI::App& app);
void add_inspect(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_detokenize(CLI::App& app);
void add_tokenizer(CLI::App& app);
void add_score(CLI::App& app);
void add_convert(CLI::App& app);
void add_quantize(CLI::App& app);
void add_bench(CLI::App& app);
void add_batch(CLI::App& app);
void add_plan(CLI::App& app);
void add_needle(CLI::App& app);
void add_train(CLI::App& app);
void add_tune(CLI::App& app);
void add_man(CLI::App& app);
void add_completion(CLI::App& app);

}  // namespace drover
