// What a scheduler has under way: requests, and the sequences that answer them. For its own files.
#pragma once

#include <chrono>
#include <exception>

#include "engine/scheduler.h"
#include "engine/stop_finder.h"
#include "text/detokenizer.h"

namespace drover {

// Logits of a large vocabulary are the largest thing in sight: so many bytes of them for prompts in
// a step.
inline constexpr int64_t kPromptLogitBytes = int64_t{64} << 20;

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Scheduler::Job {
  uint64_t id = 0;
  Request request;
  Events events;
  std::vector<PlacedPicture> pictures;
  std::vector<const float*> embeddings;  // as SequenceSlice::embeddings; empty without pictures
  int64_t must_know = 0;  // tokens that only what was read before can give: pictures of a file
  int64_t longest = 0;    // tokens of prompt and answer together, at most
  std::vector<Answer> answers;
  int64_t unfinished = 0;                       // answers
  std::vector<ChoiceLogprobs> prompt_logprobs;  // so far
  bool cancelled = false;
  bool forked = false;        // every answer has a sequence
  std::exception_ptr broken;  // what its listener threw in the midst of a pass

  int64_t prompt() const { return static_cast<int64_t>(request.prompt.tokens.size()); }
  bool embeds() const { return request.kind == RequestKind::kEmbedding; }
  bool scores() const { return request.options.prompt_logprobs.has_value(); }
  // Whether every token of the prompt is wanted to the last layer, and so must be read.
  bool wants_all() const { return embeds() || scores(); }
  // Why it should end now, if it should.
  std::optional<FinishReason> ending() const {
    if (cancelled || (events.cancel != nullptr && events.cancel->load(std::memory_order_relaxed))) {
      return FinishReason::kCancelled;
    }
    if (request.deadline && std::chrono::steady_clock::now() >= *request.deadline)
      return FinishReason::kDeadline;
    return std::nullopt;
  }
  // The last that is heard. What is thrown then is nobody's to hear.
  void tell(std::vector<Answer> all, std::exception_ptr error) const noexcept {
    try {
      if (events.done) events.done(std::move(all), error);
    } catch (...) {
    }
  }
};

struct Scheduler::Sequence {
  std::shared_ptr<Job> job;
  int64_t sample = 0;
  uint64_t user = 0;  // of the tree's pins
  KvCache cache;
  std::vector<Token> text;  // prompt and answer; the cache holds the first of it
  PrefixTree::Node* node = nullptr;
  int64_t kept = 0;      // tokens that the tree has up to `node`
  int64_t promised = 0;  // pages
  Sampler sampler;
  Detokenizer detokenizer;
  StopFinder stops;
  Answer answer;
  std::vector<double> states;  // [D], their sum over the positions so far, for an embedding
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();

  Sequence(std::shared_ptr<Job> j, int64_t sample, uint64_t user, KvCache cache,
           const SamplingOptions& sampling, const Tokenizer& tokenizer)
      : job(std::move(j)),
        sample(sample),
        user(user),
        cache(std::move(cache)),
        text(job->request.prompt.tokens),
        sampler(sampling),
        detokenizer(tokenizer),
        stops(job->request.options.stop) {
    answer.prompt_tokens = job->prompt();
  }

  bool reading() const { return cache.length() < job->prompt(); }
  TextView view() const { return {text, job->pictures}; }
};

// Where the pictures of a prompt stand, and what is put in the place of its tokens.
void place_pictures(const Prompt& prompt, Token patch, std::vector<PlacedPicture>& placed,
                    std::vector<const float*>& embeddings);

}  // namespace drover
