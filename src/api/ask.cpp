#include "api/ask.h"

#include <algorithm>
#include <numeric>

namespace drover {
namespace {

bool was_cut(const Answer& answer) {
  return answer.finish == FinishReason::kCancelled || answer.finish == FinishReason::kDeadline;
}

// What is known of all prompts so far. The engine's thread alone comes here.
struct Gathering {
  ApiEvents events;
  std::vector<std::vector<Answer>> answers;
  std::vector<uint64_t> read, wanted;  // tokens of each prompt
  size_t open = 0;                     // prompts
  std::exception_ptr error;

  void progress(size_t prompt, uint64_t done) {
    read[prompt] = done;
    events.prompt(std::accumulate(read.begin(), read.end(), uint64_t{0}),
                  std::accumulate(wanted.begin(), wanted.end(), uint64_t{0}));
  }
  void done(size_t prompt, std::vector<Answer> all, std::exception_ptr failed) {
    if (failed && !error) error = failed;
    try {
      if (!error && events.stream && std::none_of(all.begin(), all.end(), was_cut)) {
        events.stream->done(prompt, all);
      }
    } catch (...) {
      error = std::current_exception();
    }
    answers[prompt] = std::move(all);
    if (--open > 0 || !events.done) return;
    if (error) answers.clear();
    events.done(std::move(answers), error);
  }
};

Events events_of(const std::shared_ptr<Gathering>& all, size_t prompt) {
  Events out;
  out.cancel = all->events.cancel;
  if (all->events.prompt) {
    out.prompt = [all, prompt](uint64_t done, uint64_t) { all->progress(prompt, done); };
  }
  // What one prompt's failure leaves of the others ends with their next token.
  const auto go_on = [all] {
    if (all->error) std::rethrow_exception(all->error);
  };
  out.token = [all, prompt, go_on](const DrawnToken& token) {
    go_on();
    if (all->events.token) all->events.token(prompt, token);
    if (all->events.stream) all->events.stream->token(prompt, token);
  };
  if (const auto& stream = all->events.stream) {
    out.text = [stream, prompt](int64_t sample, std::string_view piece) {
      stream->text(prompt, sample, piece);
    };
    out.prompt_logprobs = [stream, prompt](std::span<const ChoiceLogprobs> logprobs) {
      stream->prompt_logprobs(prompt, logprobs);
    };
  }
  out.done = [all, prompt](std::vector<Answer> answers, std::exception_ptr error) {
    all->done(prompt, std::move(answers), error);
  };
  return out;
}

}  // namespace

std::vector<uint64_t> ask(Engine& engine, std::vector<Request> requests, ApiEvents events) {
  auto all = std::make_shared<Gathering>();
  all->events = std::move(events);
  all->open = requests.size();
  all->answers.resize(requests.size());
  all->read.resize(requests.size());
  std::vector<Events> each;
  for (const Request& request : requests) {
    all->wanted.push_back(request.prompt.tokens.size());
    each.push_back(events_of(all, each.size()));
  }
  return engine.submit(std::move(requests), std::move(each));
}

}  // namespace drover
