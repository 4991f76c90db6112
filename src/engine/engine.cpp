#include "engine/engine.h"

#include <future>

#include "base/error.h"

namespace drover {

Engine::Engine(const Model& model, Context& context, const EngineOptions& options)
    : scheduler_(model, context, options), thread_([this] { run(); }) {}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Engine::post(std::function<void()> message) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(message));
  }
  wake_.notify_one();
}

void Engine::run() {
  bool busy = false;
  for (;;) {
    std::deque<std::function<void()>> messages;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return busy || stop_ || !inbox_.empty(); });
      messages.swap(inbox_);
    }
    for (const auto& message : messages) message();
    {
      // What came before the end is in the scheduler's hands now, who tells it that it ends.
      const std::lock_guard lock(mutex_);
      if (stop_ && inbox_.empty()) return;
    }
    busy = scheduler_.step();
  }
}

std::vector<uint64_t> Engine::submit(std::vector<Request> requests, std::vector<Events> events) {
  DROVER_CHECK(requests.size() == events.size());
  std::vector<std::shared_ptr<Scheduler::Job>> jobs;
  for (size_t i = 0; i < requests.size(); ++i) {
    jobs.push_back(scheduler_.prepare(std::move(requests[i]), std::move(events[i])));
  }
  std::vector<uint64_t> ids;
  {
    const std::lock_guard lock(mutex_);
    for (auto& job : jobs) {
      ids.push_back(next_id_++);
      inbox_.push_back(
          [this, id = ids.back(), job = std::move(job)] { scheduler_.enqueue(job, id); });
    }
  }
  wake_.notify_one();
  return ids;
}

uint64_t Engine::submit(Request request, Events events) {
  std::vector<Request> requests;
  std::vector<Events> heard;
  requests.push_back(std::move(request));
  heard.push_back(std::move(events));
  return submit(std::move(requests), std::move(heard))[0];
}

void Engine::cancel(uint64_t id) {
  post([this, id] { scheduler_.cancel(id); });
}

std::vector<Answer> Engine::generate(Request request, const Listener& listener) {
  std::promise<std::vector<Answer>> promise;
  Events events{.prompt = listener.prompt, .text = {}, .done = {}, .cancel = listener.cancel};
  if (listener.text) {
    events.text = [&](int64_t sample, std::string_view piece) {
      if (sample == 0) listener.text(piece);
    };
  }
  events.done = [&](std::vector<Answer> answers, std::exception_ptr error) {
    error ? promise.set_exception(error) : promise.set_value(std::move(answers));
  };
  auto answers = promise.get_future();
  submit(std::move(request), std::move(events));
  return answers.get();
}

Answer Engine::generate(const Prompt& prompt, const GenerateOptions& options,
                        const Listener& listener) {
  return std::move(generate(Request{.prompt = prompt, .options = options}, listener)[0]);
}

void Engine::call(const std::function<void()>& task) {
  std::promise<void> promise;
  post([&] {
    try {
      task();
      promise.set_value();
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  });
  promise.get_future().get();
}

void Engine::score(const Prompt& prompt, const EachLogits& each, const Progress& progress) {
  call([&] { scheduler_.score(prompt, each, progress); });
}

void Engine::adopt(std::shared_ptr<const ContextFile> file) {
  call([&] { scheduler_.adopt(std::move(file)); });
}

ContextSaved Engine::save(const std::filesystem::path& path, const Prompt& text) {
  ContextSaved saved;
  call([&] { saved = scheduler_.save(path, text); });
  return saved;
}

SchedulerState Engine::state() {
  SchedulerState state;
  call([&] { state = scheduler_.state(); });
  return state;
}

void Engine::forget() {
  call([&] { scheduler_.forget(); });
}

}  // namespace drover
