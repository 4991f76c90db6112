#include "engine/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "engine/sequence.h"

namespace drover {

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
  }
  return "unknown";
}

Scheduler::Scheduler(const Model& model, Context& context, const EngineOptions& options)
    : model_(model),
      context_(context),
      options_(options),
      layout_(model.config().cache_layout(choose_cache_type(model, options.cache_type))),
      context_tokens_(choose_context(model.config(), options.context)),
      pool_(layout_.page_bytes(), choose_cache_memory(layout_, context_tokens_, options),
            options.cache_dir),
      tree_(layout_),
      reuse_chunks_(options.chunk_reuse && options.shortcuts.dead_prefill &&
                    options.shortcuts.positions_in_chunk && tree_.chunks_stand_alone() &&
                    model.config().chunks_stand_alone()),
      decoder_(context, model.config(), model.weights(), options.shortcuts),
      clock_(options.batch) {
  decoder_.observe(options.observer);
  decoder_.choose(options.choice);
  if (options.batch < 1) {
    throw_error(ErrorKind::kUsage, "batch: expected at least 1 token, got {}", options.batch);
  }
  if (options.parallel < 1) {
    throw_error(ErrorKind::kUsage, "parallel: expected at least 1, got {}", options.parallel);
  }
}

Scheduler::~Scheduler() {
  const auto gone = std::make_exception_ptr(Error(ErrorKind::kCancelled, "stopped"));
  while (!running_.empty()) fail(*running_.front()->job, gone);
  for (const auto& job : waiting_) job->tell({}, gone);
}

void Scheduler::expect_room(int64_t tokens) const {
  if (tokens <= context_tokens_) return;
  throw Error(ErrorKind::kLimit,
              fmt::format("prompt: expected at most the context of {} tokens, got {}",
                          context_tokens_, tokens),
              "ask for a larger context with --context, or shorten the text");
}

void Scheduler::expect_patches(std::span<const Token> tokens,
                               std::span<const PictureTokens> pictures) const {
  if (pictures.empty()) return;
  const auto patch = model_.vision().config.patch_token;
  const int64_t got = patch ? std::count(tokens.begin(), tokens.end(), *patch) : 0;
  int64_t expected = 0;
  for (const PictureTokens& picture : pictures) expected += picture.patches();
  if (got != expected) {
    throw_error(ErrorKind::kUsage,
                "pictures: expected {} patch tokens in the prompt for {} pictures, got {}",
                expected, pictures.size(), got);
  }
}

void Scheduler::expect_prompt(const Prompt& prompt) const {
  if (prompt.tokens.empty())
    throw_error(ErrorKind::kUsage, "prompt: expected at least one token, got none");
  expect_room(static_cast<int64_t>(prompt.tokens.size()));
  for (const Token token : prompt.tokens) {
    if (token < 0 || token >= model_.config().vocab) {
      throw_error(ErrorKind::kBadData, "token: expected 0 to {}, got {}", model_.config().vocab - 1,
                  token);
    }
  }
  std::vector<PictureTokens> pictures;
  for (const auto& picture : prompt.pictures) {
    DROVER_CHECK(picture->unseen() || picture->embedding == model_.config().hidden);
    pictures.push_back(picture->tokens);
  }
  expect_patches(prompt.tokens, pictures);
}

void place_pictures(const Prompt& prompt, Token patch, std::vector<PlacedPicture>& placed,
                    std::vector<const float*>& embeddings) {
  embeddings.assign(prompt.tokens.size(), nullptr);
  size_t next = 0;  // picture
  int64_t row = 0;
  for (size_t i = 0; i < prompt.tokens.size(); ++i) {
    if (prompt.tokens[i] != patch) continue;
    const EncodedPicture& picture = *prompt.pictures[next];
    const int64_t at = static_cast<int64_t>(i);
    if (row == 0) placed.push_back({at, at, picture.hash});
    placed.back().end = at + 1;
    if (!picture.unseen()) embeddings[i] = picture.row(row);
    if (++row == picture.tokens.patches()) {
      ++next;
      row = 0;
    }
  }
}

// Pages of a conversation of this length, without the full ones of its first `shared` tokens.
int64_t Scheduler::pages_for(int64_t length, int64_t shared) const {
  return layout_.pages(length) - layout_.global_layers() * (shared / kPageTokens);
}

std::shared_ptr<Scheduler::Job> Scheduler::prepare(Request request, Events events) const {
  if (request.kind == RequestKind::kEmbedding) {
    request.options = {.max_tokens = 0};
    request.samples = 1;
  }
  validate(request.options.sampling);
  // A caller may name thousands of them, and each token is looked for.
  std::vector<Token>& stops = request.options.stop_tokens;
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  for (const auto& [token, bias] : request.options.sampling.logit_bias) {
    if (token >= model_.config().vocab) {
      throw_error(ErrorKind::kUsage, "logit_bias: expected tokens of 0 to {}, got {}",
                  model_.config().vocab - 1, token);
    }
  }
  for (const auto& top : {request.options.logprobs, request.options.prompt_logprobs}) {
    if (top && (*top < 0 || *top > kMostTopLogprobs)) {
      throw_error(ErrorKind::kUsage, "top_logprobs: expected 0 to {}, got {}", kMostTopLogprobs,
                  *top);
    }
  }
  if (request.samples < 1) {
    throw_error(ErrorKind::kUsage, "samples: expected at least 1, got {}", request.samples);
  }
  (void)model_.tokenizer();
  expect_prompt(request.prompt);
  auto job = std::make_shared<Job>();
  job->request = std::move(request);
  job->events = std::move(events);
  const int64_t prompt = job->prompt(), most = job->request.options.max_tokens;
  job->longest = most < 0 || most > context_tokens_ - prompt ? context_tokens_ : prompt + most;
  if (!job->request.prompt.pictures.empty()) {
    place_pictures(job->request.prompt, *model_.vision().config.patch_token, job->pictures,
                   job->embeddings);
    for (size_t i = 0; i < job->pictures.size(); ++i) {
      if (job->request.prompt.pictures[i]->unseen()) job->must_know = job->pictures[i].end;
    }
  }
  const int64_t samples = job->request.samples;
  const int64_t wanted =
      pages_for(job->longest, 0) + (samples - 1) * pages_for(job->longest, prompt);
  if (samples > options_.parallel || wanted > pool_.capacity()) {
    throw Error(
        ErrorKind::kLimit,
        samples > options_.parallel
            ? fmt::format("samples: expected at most {}, got {}", options_.parallel, samples)
            : fmt::format("cache memory: {} bytes are needed for {} tokens, {} are available",
                          wanted * pool_.page_bytes(), job->longest,
                          pool_.capacity() * pool_.page_bytes()),
        samples > options_.parallel
            ? ""
            : "allow more with --cache-memory, choose --cache-type int8, or limit the answer");
  }
  return job;
}

void Scheduler::enqueue(std::shared_ptr<Job> job, uint64_t id) {
  job->id = id;
  const auto later = [&](const auto& other) {
    return other->request.priority < job->request.priority;
  };
  waiting_.insert(std::find_if(waiting_.begin(), waiting_.end(), later), std::move(job));
}

void Scheduler::cancel(uint64_t id) {
  for (const auto& job : waiting_) {
    if (job->id == id) job->cancelled = true;
  }
  for (const auto& sequence : running_) {
    if (sequence->job->id == id) sequence->job->cancelled = true;
  }
}

// Lets a waiting request in, if what it may need is there.
bool Scheduler::admit(Job& job) {
  const int64_t samples = job.request.samples, prompt = job.prompt();
  int64_t answers = samples;
  for (const auto& s : running_) answers += s->job->forked ? 1 : s->job->request.samples;
  if (answers > options_.parallel) return false;
  const uint64_t user = next_user_;
  next_user_ += static_cast<uint64_t>(samples);
  // The last token is computed anew, for its logits.
  const PrefixTree::Match known =
      job.wants_all()
          ? PrefixTree::Match{}
          : tree_.match(job.request.salt, {job.request.prompt.tokens, job.pictures}, prompt - 1);
  if (known.length < job.must_know) {
    throw Error(ErrorKind::kNotFound,
                fmt::format("prompt: expected {} known tokens with their pictures, found {}",
                            job.must_know, known.length),
                "show the pictures again");
  }
  tree_.pin(known.node);
  // A page that is shared in part will be copied, and is then another one.
  PrefixTree::Node* const node =
      known.length % kPageTokens == 0 ? known.node : tree_.step_back(known.node);
  const int64_t first = pages_for(job.longest, known.length);
  const int64_t others = (samples - 1) * pages_for(job.longest, prompt);
  if (promised_ + first + others + tree_.pinned_pages() > pool_.capacity()) {
    tree_.unpin(node, user);
    return false;
  }

  auto sequence = std::make_unique<Sequence>(waiting_.front(), 0, user,
                                             KvCache(layout_, context_tokens_, pool_),
                                             job.request.options.sampling, model_.tokenizer());
  if (known.node != nullptr) tree_.fill(known, sequence->cache);
  sequence->node = node;
  sequence->kept = known.length / kPageTokens * kPageTokens;
  sequence->promised = first + others;
  promised_ += first + others;
  sequence->answer.cached_tokens = known.length;
  job.answers.resize(static_cast<size_t>(samples));
  job.unfinished = samples;
  const auto later = [&](const auto& other) {
    return other->job->request.priority < job.request.priority;
  };
  running_.insert(std::find_if(running_.begin(), running_.end(), later), std::move(sequence));
  return true;
}

void Scheduler::drop_cancelled() {
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    const auto job = *at;
    const auto reason = job->ending();
    if (!reason) {
      ++at;
      continue;
    }
    at = waiting_.erase(at);
    Answer none;
    none.finish = *reason;
    none.prompt_tokens = job->prompt();
    job->tell(std::vector<Answer>(static_cast<size_t>(job->request.samples), none), nullptr);
  }
  std::vector<std::pair<std::shared_ptr<Job>, FinishReason>> ending;
  for (const auto& sequence : running_) {
    if (!ending.empty() && ending.back().first == sequence->job) continue;
    if (const auto reason = sequence->job->ending()) ending.emplace_back(sequence->job, *reason);
  }
  for (const auto& [job, reason] : ending) end(job, reason);
}

// All answers of a request end as they are.
void Scheduler::end(const std::shared_ptr<Job>& job, FinishReason reason) {
  const auto is_its = [&](const auto& s) { return s->job == job; };
  try {
    for (auto at = running_.begin();
         (at = std::find_if(running_.begin(), running_.end(), is_its)) != running_.end();) {
      finish(**at, reason);
    }
  } catch (...) {
    fail(*job, std::current_exception());
  }
}

// Chunks that are known from elsewhere, and stand alone, are taken over.
void Scheduler::skip_known_chunks(Sequence& s) {
  if (!reuse_chunks_ || s.job->wants_all()) return;
  const int64_t live = layout_.chunk_begin(s.job->prompt() - 1);
  while (s.cache.length() % layout_.chunk == 0 && s.cache.length() < live &&
         s.kept == s.cache.length()) {
    PrefixTree::Node* node =
        tree_.adopt_chunk(s.job->request.salt, s.node, s.view(), s.cache.length(), s.cache, s.user);
    if (node == nullptr) break;
    s.node = node;
    s.kept = s.cache.length();
    s.answer.cached_tokens += layout_.chunk;
  }
}

bool Scheduler::step() {
  drop_cancelled();
  while (!waiting_.empty()) {
    const std::shared_ptr<Job> job = waiting_.front();
    try {
      if (!admit(*job)) break;
    } catch (...) {
      job->tell({}, std::current_exception());
    }
    waiting_.pop_front();
  }
  if (running_.empty()) return !waiting_.empty();

  // The batch: a token of every answer, then prompts in turn.
  const int64_t answers =
      std::count_if(running_.begin(), running_.end(), [](const auto& s) { return !s->reading(); });
  const int64_t room = std::max<int64_t>(options_.batch - answers, 1);
  int64_t budget = clock_.prompt_budget(answers), ahead = clock_.ahead(), left = room;
  std::vector<Sequence*> batch;
  std::vector<SequenceSlice> slices;
  int64_t prompt_tokens = 0, rows = 0;
  int64_t scored = std::max<int64_t>(kPromptLogitBytes / (model_.config().vocab * 4), 1);
  int64_t states = 0;
  for (const auto& owned : running_) {
    Sequence& s = *owned;
    SequenceSlice slice{&s.cache, {}, 1};
    slice.visits = &s.answer.visits;
    if (s.reading()) {
      const int64_t unread = s.job->prompt() - s.cache.length();
      const bool goes_ahead = unread <= std::min(ahead, left);
      if ((budget == 0 && !goes_ahead) || left == 0) continue;
      if (s.job->scores() && scored == 0) continue;
      s.cache.leave_shared_ring();
      skip_known_chunks(s);
      const int64_t first = s.cache.length(), prompt = s.job->prompt();
      int64_t n = goes_ahead ? prompt - first : std::min({budget, left, prompt - first});
      if (s.job->scores()) n = std::min(n, scored);
      slice.live = s.job->wants_all() ? 0 : prompt - 1;
      // Where a ring's pages are shared, or will be, its chunk is left before the next begins: so
      // no more pages are taken than were promised.
      if (layout_.chunk > 0) {
        const int64_t border = layout_.chunk_begin(first) + layout_.chunk;
        if (s.cache.ring_shared() || border > slice.live) n = std::min(n, border - first);
        // And so that a chunk that is known from elsewhere is taken over and not read.
        const int64_t live = layout_.chunk_begin(slice.live);
        for (int64_t at = border;
             reuse_chunks_ && !s.job->wants_all() && at < std::min(first + n, live);
             at += layout_.chunk) {
          if (tree_.knows_chunk(s.job->request.salt, s.view(), at)) n = at - first;
        }
      }
      slice.tokens = std::span(s.text).subspan(static_cast<size_t>(first), static_cast<size_t>(n));
      slice.logits = first + n == prompt ? 1 : 0;
      if (s.job->scores()) {
        slice.logits = n;
        scored -= n;
      }
      if (s.job->embeds()) {
        slice.logits = 0;
        slice.states.rows = n;
        states += n;
      }
      if (!s.job->embeddings.empty()) {
        slice.embeddings = std::span(s.job->embeddings)
                               .subspan(static_cast<size_t>(first), static_cast<size_t>(n));
      }
      (goes_ahead ? ahead : budget) -= n;
      left -= n;
      prompt_tokens += n;
    } else {
      s.cache.leave_shared_ring();
      slice.tokens = std::span(s.text).subspan(static_cast<size_t>(s.cache.length()));
      slice.live = s.cache.length();
    }
    rows += slice.logits;
    batch.push_back(&s);
    slices.push_back(slice);
  }
  // Nobody but prompts that wait for the time of answers alone: there are answers then.
  DROVER_CHECK(!batch.empty());

  const int64_t hidden = model_.config().hidden;
  states_.reserve_discarding(states * hidden);
  float* at = states_.data();
  for (SequenceSlice& slice : slices) {
    slice.states = {at, slice.states.rows, hidden, hidden};
    at += slice.states.rows * hidden;
  }
  run_batch(batch, slices, rows, answers, prompt_tokens);
  return true;
}

void Scheduler::run_batch(std::span<Sequence* const> batch, std::span<const SequenceSlice> slices,
                          int64_t rows, int64_t answers, int64_t prompt_tokens) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t vocab = model_.config().vocab, layers = model_.config().layer_count();
  // Alone, a request that leaves can stop between layers; in company its step goes to its end.
  const auto between_layers = [&](int64_t layer) {
    for (size_t i = 0; i < batch.size(); ++i) {
      const Sequence& s = *batch[i];
      const int64_t n = static_cast<int64_t>(slices[i].tokens.size());
      if (!s.reading() || !s.job->events.prompt || s.job->broken) continue;
      try {
        s.job->events.prompt(s.cache.length() + n * layer / layers, s.job->prompt());
      } catch (...) {
        s.job->broken = std::current_exception();
      }
    }
    return batch.size() > 1 || (!batch[0]->job->broken && !batch[0]->job->ending());
  };
  bool done = false;
  try {
    take_room(slices);
    logits_.resize(static_cast<size_t>(rows * vocab));
    done = decoder_.forward(slices, {logits_.data(), rows, vocab, vocab}, between_layers);
  } catch (...) {
    const auto error = std::current_exception();
    std::vector<std::shared_ptr<Job>> jobs;
    for (Sequence* s : batch) {
      s->cache.rewind(s->cache.length());
      jobs.push_back(s->job);
    }
    for (const auto& job : jobs) fail(*job, error);
    return;
  }
  if (!done) {
    batch[0]->cache.rewind(batch[0]->cache.length());
    const auto job = batch[0]->job;
    if (job->broken) return fail(*job, job->broken);
    return end(job, job->ending().value_or(FinishReason::kCancelled));
  }
  clock_.learn(answers, prompt_tokens, seconds_since(start));

  float* row = logits_.data();
  for (size_t i = 0; i < batch.size(); ++i) {
    const std::span logits(row, static_cast<size_t>(slices[i].logits * vocab));
    row += logits.size();
    // A request that failed on the way has taken its other answers along.
    const bool there = std::any_of(running_.begin(), running_.end(),
                                   [&](const auto& s) { return s.get() == batch[i]; });
    if (!there) continue;
    const auto job = batch[i]->job;
    job->broken ? fail(*job, job->broken) : advance(*batch[i], slices[i].states, logits);
  }
}

// Makes room in the pool for what these slices store.
void Scheduler::take_room(std::span<const SequenceSlice> slices) {
  int64_t wanted = 0;
  for (const SequenceSlice& slice : slices) {
    wanted += slice.cache->pages_to_take(static_cast<int64_t>(slice.tokens.size()));
  }
  const int64_t free = pool_.capacity() - pool_.pages();
  if (free < wanted) tree_.release(wanted - free);
}

SchedulerState Scheduler::state() const {
  return {.waiting = static_cast<int64_t>(waiting_.size()),
          .running = static_cast<int64_t>(running_.size()),
          .pages_used = pool_.pages(),
          .pages_promised = promised_ + tree_.pinned_pages(),
          .pages = pool_.capacity(),
          .page_bytes = pool_.page_bytes(),
          .kept_tokens = tree_.tokens(),
          .experts = model_.config().experts,
          .expert_tokens = {decoder_.expert_tokens().begin(), decoder_.expert_tokens().end()}};
}

void Scheduler::forget() { tree_.release(PagePool::kNoLimit); }

}  // namespace drover
