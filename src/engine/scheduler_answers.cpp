// What becomes of a sequence after a pass: its prompt is kept and scored, it draws tokens, says
// them, and ends.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/sequence.h"

namespace drover {

// After a pass: what was read is kept for others, and who has read all draws a token.
void Scheduler::advance(Sequence& s, ConstMatrixView states, std::span<const float> logits) {
  const std::shared_ptr<Job> job = s.job;
  try {
    keep(s, /*finished=*/false);
    if (s.answer.tokens.empty() && job->events.prompt) {
      job->events.prompt(s.cache.length(), job->prompt());
    }
    if (job->scores() && !job->forked) score_prompt(s, logits);
    add_states(s, states);
    if (s.reading()) return;
    if (s.answer.tokens.empty()) {
      s.answer.prompt_seconds = seconds_since(s.started);
      s.started = std::chrono::steady_clock::now();
    }
    if (job->embeds()) return finish(s, FinishReason::kStop);
    const auto last = logits.last(static_cast<size_t>(model_.config().vocab));
    std::vector<Sequence*> drawing{&s};
    if (!job->forked) fork(s, drawing);
    for (Sequence* sequence : drawing) draw(*sequence, last);
  } catch (...) {
    fail(*job, std::current_exception());
  }
}

// What the logits of the tokens that were just read say about those after them.
void Scheduler::score_prompt(Sequence& s, std::span<const float> logits) {
  Job& job = *s.job;
  const int64_t vocab = model_.config().vocab, prompt = job.prompt();
  const int64_t rows = static_cast<int64_t>(logits.size()) / vocab;
  const int64_t first = s.cache.length() - rows + 1;  // the token that row 0 is about
  const int64_t count = std::min(rows, prompt - first);
  std::vector<ChoiceLogprobs>& out = job.prompt_logprobs;
  DROVER_CHECK(static_cast<int64_t>(out.size()) == first - 1);
  out.resize(static_cast<size_t>(first - 1 + count));
  context_.threads.run(count, [&](int64_t row, int) {
    out[static_cast<size_t>(first - 1 + row)] =
        logprobs_of(logits.subspan(static_cast<size_t>(row * vocab), static_cast<size_t>(vocab)),
                    s.text[static_cast<size_t>(first + row)], *job.request.options.prompt_logprobs);
  });
  if (s.reading()) return;
  s.answer.prompt_logprobs =
      std::make_shared<const std::vector<ChoiceLogprobs>>(std::move(job.prompt_logprobs));
  if (job.events.prompt_logprobs) job.events.prompt_logprobs(*s.answer.prompt_logprobs);
}

// Position after position; the last one makes the mean, and its length 1.
void Scheduler::add_states(Sequence& s, ConstMatrixView states) {
  if (states.rows == 0) return;
  s.states.resize(static_cast<size_t>(states.cols));
  for (int64_t t = 0; t < states.rows; ++t) {
    for (int64_t i = 0; i < states.cols; ++i) s.states[i] += states.row(t)[i];
  }
  if (s.reading()) return;
  // The length of the sum is the mean's but for a factor, which goes out again.
  double square = 0;
  for (const double sum : s.states) square += sum * sum;
  const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
  for (const double sum : s.states) s.answer.embedding.push_back(static_cast<float>(sum * scale));
}

// Gives every further answer to a prompt that was read a sequence of its own, which shares all
// pages so far.
void Scheduler::fork(Sequence& first, std::vector<Sequence*>& out) {
  Job& job = *first.job;
  job.forked = true;
  auto at = std::find_if(running_.begin(), running_.end(),
                         [&](const auto& s) { return s.get() == &first; });
  for (int64_t i = 1; i < job.request.samples; ++i) {
    SamplingOptions sampling = job.request.options.sampling;
    sampling.seed += static_cast<uint64_t>(i);
    auto next = std::make_unique<Sequence>(first.job, i, first.user + static_cast<uint64_t>(i),
                                           first.cache, sampling, model_.tokenizer());
    next->node = first.node;
    next->kept = first.kept;
    tree_.pin(next->node);
    next->promised = pages_for(job.longest, job.prompt());
    first.promised -= next->promised;
    next->answer = first.answer;
    next->started = first.started;
    out.push_back(next.get());
    at = running_.insert(std::next(at), std::move(next));
  }
}

void Scheduler::draw(Sequence& s, std::span<const float> logits) {
  const Job& job = *s.job;
  const GenerateOptions& options = job.request.options;
  if (options.max_tokens == 0) return finish(s, FinishReason::kLength);
  own_.assign(logits.begin(), logits.end());
  const Token token = s.sampler.sample(own_, s.text, static_cast<int64_t>(s.answer.tokens.size()),
                                       s.cache.length());
  if (options.logprobs) s.answer.logprobs.push_back(logprobs_of(logits, token, *options.logprobs));
  const Tokenizer& tokenizer = model_.tokenizer();
  const bool stop =
      std::binary_search(options.stop_tokens.begin(), options.stop_tokens.end(), token);
  stop ? void(s.answer.stop_token = token) : s.answer.tokens.push_back(token);
  if (job.events.token) {
    job.events.token({.sample = s.sample,
                      .token = token,
                      .bytes = tokenizer.token_bytes(token),
                      .control = tokenizer.is_control(token),
                      .stop = stop,
                      .logprobs = options.logprobs ? &s.answer.logprobs.back() : nullptr});
  }
  if (stop) return finish(s, FinishReason::kStop);
  std::string piece = s.detokenizer.push(token);
  const bool shown = options.show_special || std::find(options.shown.begin(), options.shown.end(),
                                                       token) != options.shown.end();
  if (shown && tokenizer.is_control(token)) piece += tokenizer.token_bytes(token);
  say(s, s.stops.push(piece));
  if (s.stops.found()) return finish(s, FinishReason::kStop);
  // The last token is not read: nothing would be drawn from what it makes.
  if (static_cast<int64_t>(s.answer.tokens.size()) == options.max_tokens) {
    return finish(s, FinishReason::kLength);
  }
  if (s.cache.length() == s.cache.context()) return finish(s, FinishReason::kContext);
  s.text.push_back(token);
}

void Scheduler::say(Sequence& s, const std::string& piece) {
  if (piece.empty()) return;
  s.answer.text += piece;
  if (s.job->events.text) s.job->events.text(s.sample, piece);
}

// Puts what the cache holds into the tree, as far as pages are full, or all of it.
void Scheduler::keep(Sequence& s, bool finished) {
  if (s.job->embeds()) return;
  const int64_t end = s.cache.length();
  const int64_t live = layout_.chunk_begin(s.job->prompt() - 1);
  while (s.kept + kPageTokens <= end || (finished && s.kept < end)) {
    const int64_t to = std::min(s.kept + kPageTokens, end);
    s.node = tree_.insert(s.job->request.salt, s.node, s.view(), s.kept, to, s.cache,
                          /*rings=*/s.kept >= live, s.user);
    s.kept = to;
  }
}

void Scheduler::finish(Sequence& s, FinishReason reason) {
  const std::shared_ptr<Job> job = s.job;
  if (!s.stops.found()) {
    say(s, s.stops.push(s.detokenizer.flush()));
    if (!s.stops.found()) say(s, s.stops.flush());
  }
  s.answer.finish = reason;
  if (reason == FinishReason::kStop) s.answer.stop_string = s.stops.which();
  (s.reading() ? s.answer.prompt_seconds : s.answer.answer_seconds) = seconds_since(s.started);
  keep(s, /*finished=*/true);
  if (job->forked) {
    job->answers[static_cast<size_t>(s.sample)] = std::move(s.answer);
    --job->unfinished;
  } else {
    job->answers.assign(static_cast<size_t>(job->request.samples), s.answer);
    job->unfinished = 0;
  }
  close(s);
  if (job->unfinished == 0) job->tell(std::move(job->answers), nullptr);
}

void Scheduler::fail(Job& failed, std::exception_ptr error) {
  const auto is_its = [&](const auto& s) { return s->job.get() == &failed; };
  std::shared_ptr<Job> job;
  for (auto at = running_.end();
       (at = std::find_if(running_.begin(), running_.end(), is_its)) != running_.end();) {
    job = (*at)->job;
    close(**at);
  }
  // Null: all its answers were done already.
  if (job) job->tell({}, error);
}

// Gives back all that a sequence holds.
void Scheduler::close(Sequence& s) {
  tree_.unpin(s.node, s.user);
  promised_ -= s.promised;
  running_.remove_if([&](const auto& other) { return other.get() == &s; });
}

}  // namespace drover
