#include "engine/scheduler.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "engine/stop_finder.h"
#include "model/fingerprint.h"
#include "text/detokenizer.h"

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;

// Enough for long conversations, and small enough that a model made for ten million tokens does not
// promise memory that a newcomer does not have. More is asked for by name.
constexpr int64_t kDefaultContext = 32768;

// The part of a step's time that prompts may take from answers that are being written.
constexpr double kPromptShare = 0.4;
// Seconds beyond that share that short prompts may take: a burst of questions is read
// at once, so that each of them hears its first token soon, and no crowd of them holds up answers
// for longer. What was taken comes back while prompts take less than their share.
constexpr double kHeadStart = 3;
// Of these so many tokens in a step: enough to be read as fast as any, and few enough that answers
// come forward between them, the first of the burst's among them.
constexpr int64_t kAheadInStep = 512;
// Tokens of prompts in a step, at least: a prompt always comes forward.
constexpr int64_t kSmallestSlice = 16;
// Logits of a large vocabulary are the largest thing in sight: so many bytes of them for prompts in
// a step.
constexpr int64_t kPromptLogitBytes = int64_t{64} << 20;
// After so many steps with prompts in them the time of answers alone is measured again: soon at
// first, since a crowd's first step may be a slow one, and then less and less often.
constexpr int64_t kFirstProbe = 2, kStepsPerProbe = 64;

int64_t choose_context(const ModelConfig& config, int64_t asked) {
  if (asked < 0)
    throw_error(ErrorKind::kUsage, "context: expected 0 or more tokens, got {}", asked);
  if (asked == 0) return std::min(config.context, kDefaultContext);
  if (asked > config.context) {
    throw Error(ErrorKind::kLimit,
                fmt::format("context: expected at most the model's {} tokens, got {}",
                            config.context, asked),
                "the model was not made for more; choose a smaller --context");
  }
  return asked;
}

// Unless asked for otherwise room for two whole conversations, and for as many as run together up
// to a quarter of the machine's memory; it is taken only as it is used.
int64_t choose_memory(const CacheLayout& layout, int64_t context, const EngineOptions& options) {
  if (options.cache_memory < 0) {
    throw_error(ErrorKind::kUsage, "cache memory: expected 0 or more bytes, got {}",
                options.cache_memory);
  }
  if (options.cache_memory > 0) return options.cache_memory;
  const int64_t one = layout.pages(context) * layout.page_bytes();
  const int64_t machine = ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  return std::max(2 * one, std::min(std::max<int64_t>(options.parallel, 1) * one, machine / 4));
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

DType choose_cache_type(const Model& model, std::optional<DType> asked) {
  if (asked) {
    if (!is_cache_type(*asked)) {
      throw_error(ErrorKind::kUsage, "cache type: expected f32, bf16 or int8, got {}",
                  dtype_name(*asked));
    }
    return *asked;
  }
  return model.weights().layers.front().wk.type == DType::kF32 ? DType::kF32 : DType::kBF16;
}

ContextIdentity context_identity(const Model& model, const EngineOptions& options) {
  Digest whose = fingerprint(model);
  const CacheLayout layout =
      model.config().cache_layout(choose_cache_type(model, options.cache_type));
  // What a global layer leaves out, the keys and values of the next one show.
  if (options.choice && layout.global_layers() > 1) {
    Sha256 hash;
    hash.update(std::as_bytes(std::span(whose)));
    hash.update_number(static_cast<int64_t>(options.choice->mode));
    hash.update_number(std::bit_cast<int32_t>(options.choice->epsilon));
    hash.update_number(options.choice->pages);
    whose = hash.finish();
  }
  return {.model = whose,
          .tokenizer = fingerprint(model.tokenizer().vocabulary()),
          .vocab = model.config().vocab,
          .layout = layout};
}

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
    if (request.deadline && Clock::now() >= *request.deadline) return FinishReason::kDeadline;
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
  Clock::time_point started = Clock::now();

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

Scheduler::Scheduler(const Model& model, Context& context, const EngineOptions& options)
    : model_(model),
      context_(context),
      options_(options),
      layout_(model.config().cache_layout(choose_cache_type(model, options.cache_type))),
      context_tokens_(choose_context(model.config(), options.context)),
      pool_(layout_.page_bytes(), choose_memory(layout_, context_tokens_, options),
            options.cache_dir),
      tree_(layout_),
      reuse_chunks_(options.chunk_reuse && options.shortcuts.dead_prefill &&
                    options.shortcuts.positions_in_chunk && tree_.chunks_stand_alone() &&
                    model.config().chunks_stand_alone()),
      decoder_(context, model.config(), model.weights(), options.shortcuts) {
  head_start_ = kHeadStart;
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

// Where the pictures of a prompt stand, and what is put in the place of its tokens.
static void place(const Prompt& prompt, Token patch, std::vector<PlacedPicture>& placed,
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
    place(job->request.prompt, *model_.vision().config.patch_token, job->pictures, job->embeddings);
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

// Whether the time of a step of about so many answers is known.
bool Scheduler::is_crowd_known(int64_t answers) const {
  return answers_seconds_ > 0 && answers <= 2 * answers_then_ && 2 * answers >= answers_then_;
}

// Tokens of prompts that a step takes beside so many answers.
int64_t Scheduler::prompt_budget(int64_t answers) const {
  if (answers == 0) return options_.batch;
  // The time of the answers alone must be known, and not from another crowd or long ago.
  const bool known = is_crowd_known(answers) && steps_since_ < probe_after_;
  if (!known) return 0;
  if (token_seconds_ <= 0) return kSmallestSlice;
  const double tokens = answers_seconds_ * kPromptShare / (1 - kPromptShare) / token_seconds_;
  return std::min(std::max(static_cast<int64_t>(std::min(tokens, 1e9)), kSmallestSlice),
                  options_.batch);
}

// Tokens of prompts that may go ahead of answers beyond that.
int64_t Scheduler::ahead() const {
  if (token_seconds_ <= 0) return kAheadInStep;
  return static_cast<int64_t>(
      std::min(head_start_ / token_seconds_, static_cast<double>(kAheadInStep)));
}

void Scheduler::learn(int64_t answers, int64_t prompt_tokens, double seconds) {
  ++steps_since_;
  if (answers == 0) {
    head_start_ = kHeadStart;
  } else {
    const double prompts = prompt_tokens > 0 ? std::max(seconds - answers_seconds_, 0.0) : 0.0;
    head_start_ = std::clamp(head_start_ + kPromptShare * seconds - prompts, 0.0, kHeadStart);
  }
  if (prompt_tokens == 0) {
    // One step that the system held up does not pass for all: it counts half as much again at most.
    const bool again = is_crowd_known(answers);
    answers_seconds_ = again ? std::min(seconds, 1.5 * answers_seconds_) : seconds;
    probe_after_ = again ? std::min(2 * probe_after_, kStepsPerProbe) : kFirstProbe;
    answers_then_ = answers;
    steps_since_ = 0;
  } else if (answers > 0 || prompt_tokens >= kSmallestSlice) {
    const double own = answers > 0 ? std::max(seconds - answers_seconds_, 0.0) : seconds;
    const double now = own / static_cast<double>(prompt_tokens);
    token_seconds_ = token_seconds_ > 0 ? 0.7 * token_seconds_ + 0.3 * now : now;
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
  int64_t budget = prompt_budget(answers), ahead = this->ahead(), left = room;
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
  const auto start = Clock::now();
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
  learn(answers, prompt_tokens, seconds_since(start));

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
      s.started = Clock::now();
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

// Makes room in the pool for what these slices store.
void Scheduler::take_room(std::span<const SequenceSlice> slices) {
  int64_t wanted = 0;
  for (const SequenceSlice& slice : slices) {
    wanted += slice.cache->pages_to_take(static_cast<int64_t>(slice.tokens.size()));
  }
  const int64_t free = pool_.capacity() - pool_.pages();
  if (free < wanted) tree_.release(wanted - free);
}

void Scheduler::score(const Prompt& prompt, const EachLogits& each, const Progress& progress) {
  expect_prompt(prompt);
  std::vector<PlacedPicture> pictures;
  std::vector<const float*> embeddings;
  if (!prompt.pictures.empty()) {
    place(prompt, *model_.vision().config.patch_token, pictures, embeddings);
  }
  const std::span tokens(prompt.tokens);
  const int64_t wanted = layout_.pages(static_cast<int64_t>(tokens.size()));
  const int64_t left = std::max<int64_t>(0, pool_.capacity() - promised_ - tree_.pinned_pages());
  if (wanted > left) {
    throw Error(ErrorKind::kLimit,
                fmt::format("cache memory: {} bytes are needed for {} tokens, {} are available",
                            wanted * pool_.page_bytes(), tokens.size(), left * pool_.page_bytes()),
                "allow more with --cache-memory, or choose --cache-type int8");
  }
  KvCache cache(layout_, context_tokens_, pool_);
  const int64_t vocab = model_.config().vocab;
  const int64_t rows = std::clamp<int64_t>(kPromptLogitBytes / (vocab * 4), 1, options_.batch);
  AlignedArray<float> logits(static_cast<size_t>(rows * vocab));
  for (int64_t first = 0; first < static_cast<int64_t>(tokens.size()); first += rows) {
    const int64_t n = std::min<int64_t>(rows, tokens.size() - first);
    const MatrixView out{logits.data(), n, vocab, vocab};
    SequenceSlice slice{&cache, tokens.subspan(first, n), n};
    if (!embeddings.empty()) slice.embeddings = std::span(embeddings).subspan(first, n);
    take_room({&slice, 1});
    decoder_.forward({&slice, 1}, out);
    each(first, out);
    if (progress) progress(first + n, tokens.size());
  }
}

void Scheduler::adopt(std::shared_ptr<const ContextFile> file) {
  const TextView text = file->text();
  const int64_t length = file->length();
  const auto page = [&](int64_t layer, int64_t i) {
    // Nobody writes to a page that others hold, and the file always holds its own.
    return PageRef(file, const_cast<std::byte*>(file->pages(layer)[static_cast<size_t>(i)]));
  };
  KvCache cache(layout_, length, pool_);
  const uint64_t user = next_user_++;
  PrefixTree::Node* node = nullptr;
  for (int64_t at = 0; at < length; at += kPageTokens) {
    std::vector<PageRef> global, local;
    const int64_t begin = layout_.chunk_begin(length - 1);
    for (int64_t layer = 0; layer < model_.config().layer_count(); ++layer) {
      if (!layout_.chunked[static_cast<size_t>(layer)]) {
        global.push_back(page(layer, at / kPageTokens));
      } else if (at >= begin && !file->pages(layer).empty() && layout_.chunk % kPageTokens == 0) {
        local.push_back(page(layer, (at - begin) / kPageTokens));
      }
    }
    const int64_t end = std::min(at + kPageTokens, length);
    cache.adopt(global, local, end - at);
    node = tree_.insert({}, node, text, at, end, cache, /*rings=*/!local.empty(), user);
  }
  files_.push_back(std::move(file));
}

ContextSaved Scheduler::save(const std::filesystem::path& path, const Prompt& text) {
  std::vector<PlacedPicture> placed;
  std::vector<const float*> embeddings;
  if (!text.pictures.empty()) {
    place(text, *model_.vision().config.patch_token, placed, embeddings);
  }
  const PrefixTree::Match known = tree_.longest({}, {text.tokens, placed}, text.tokens.size());
  if (known.length == 0) {
    throw_error(ErrorKind::kNotFound, "context: nothing of {} tokens is known any more",
                text.tokens.size());
  }
  KvCache cache(layout_, known.length, pool_);
  tree_.fill(known, cache);
  std::vector<PlacedPicture> pictures;
  for (const PlacedPicture& p : placed) {
    if (p.end <= known.length) pictures.push_back(p);
  }
  std::vector<PageList> pages;
  for (size_t layer = 0; layer < layout_.chunked.size(); ++layer) {
    int64_t held = known.length;
    if (layout_.chunked[layer]) {
      const int64_t begin = layout_.chunk_begin(known.length);
      held = known.length > begin && cache.ring_holds(begin) ? known.length - begin : 0;
    }
    pages.emplace_back(cache.pages(static_cast<int64_t>(layer)).pages,
                       static_cast<size_t>((held + kPageTokens - 1) / kPageTokens));
  }
  const std::span tokens(text.tokens);
  return save_context(path, identity(), {tokens.first(static_cast<size_t>(known.length)), pictures},
                      pages, context_.threads);
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
