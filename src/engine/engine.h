// The engine: one thread that owns a model, and any number that ask it. This is what programs use
// that want answers: the command line, the server, and yours.
//
//   const auto model = Model::load("model.gguf");
//   Context context(physical_cores());
//   Engine engine(*model, context);
//   GenerateOptions options{.max_tokens = 64, .stop_tokens = model->stop_tokens(format)};
//   Answer answer = engine.generate(Prompt{tokens}, options);
//
// Every function may be called from any thread, but not from inside an event, which runs on the
// engine's own. Answers do not depend on who asks beside (scheduler.h).
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "engine/scheduler.h"

namespace drover {

class Engine {
 public:
  // `model` and `context` must outlive the engine; from now on its thread alone uses the context,
  // but inside call(). Throws what options out of range do.
  Engine(const Model& model, Context& context, const EngineOptions& options = {});
  // Requests that are not done end with kCancelled.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Asks, and returns at once with a number for cancel(). Throws as Scheduler::prepare; then no
  // event comes.
  uint64_t submit(Request request, Events events);
  // The same for several that belong together: all of them, or, if it throws, none.
  std::vector<uint64_t> submit(std::vector<Request> requests, std::vector<Events> events);
  // A request that is done is no error.
  void cancel(uint64_t id);

  // Asks, and waits. Throws as submit(), and what the request's end or the listener threw.
  std::vector<Answer> generate(Request request, const Listener& listener = {});
  Answer generate(const Prompt& prompt, const GenerateOptions& options,
                  const Listener& listener = {});
  Answer generate(std::span<const Token> prompt, const GenerateOptions& options,
                  const Listener& listener = {}) {
    return generate(Prompt{{prompt.begin(), prompt.end()}}, options, listener);
  }

  // Logits after every token of the prompt, from a fresh start; waits.
  void score(const Prompt& prompt, const EachLogits& each, const Progress& progress = {});
  void score(std::span<const Token> tokens, const EachLogits& each, const Progress& progress = {}) {
    score(Prompt{{tokens.begin(), tokens.end()}}, each, progress);
  }

  // As Scheduler's; these wait.
  void adopt(std::shared_ptr<const ContextFile> file);
  ContextSaved save(const std::filesystem::path& path, const Prompt& text);

  // Runs something on the thread that owns the model, between two steps, and waits: the encoder of
  // pictures, say. Throws what it throws.
  void call(const std::function<void()>& task);

  void expect_room(int64_t tokens) const { scheduler_.expect_room(tokens); }
  void expect_patches(std::span<const Token> tokens,
                      std::span<const PictureTokens> pictures) const {
    scheduler_.expect_patches(tokens, pictures);
  }
  int64_t context() const { return scheduler_.context(); }
  const CacheLayout& layout() const { return scheduler_.layout(); }
  SchedulerState state();
  // Forgets what was read and nobody uses now.
  void forget();

 private:
  void post(std::function<void()> message);
  void run();

  Scheduler scheduler_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> inbox_;
  uint64_t next_id_ = 1;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace drover
