// Many conversations on one model, step by step. A step is one pass of the decoder: the next token
// of every answer that is being written, and slices of the prompts that are being read, as many
// tokens as leave the answers three fifths of their speed (engine/step_clock.h).
//
// A request is admitted when the pages of its whole length fit beside those of the others; until
// then it waits, and one that can never fit is refused before any work. So no answer is ever cut
// short for memory. What was read stays in a prefix tree until its pages are wanted. What a request
// gets does not depend on the others, nor on what was in the tree: the same bits.
//
// One thread at a time calls a Scheduler; `Engine` puts it on a thread of its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "cache/context_file.h"
#include "cache/prefix_tree.h"
#include "engine/engine_options.h"
#include "engine/request.h"
#include "engine/step_clock.h"
#include "kernels/context.h"
#include "model/decoder.h"
#include "model/model.h"

namespace drover {

// What a scheduler has in hand.
struct SchedulerState {
  int64_t waiting = 0;         // requests
  int64_t running = 0;         // answers that are written, or prompts that are read
  int64_t pages_used = 0;      // of the cache, kept ones too
  int64_t pages_promised = 0;  // to those that run
  int64_t pages = 0;           // that there can be
  int64_t page_bytes = 0;
  int64_t kept_tokens = 0;                  // in the prefix tree
  int64_t experts = 0;                      // of a layer
  std::vector<int64_t> expert_tokens = {};  // Decoder::expert_tokens
};

class Scheduler {
 public:
  // `model` and `context` must outlive the scheduler.
  Scheduler(const Model& model, Context& context, const EngineOptions& options = {});
  ~Scheduler();

  // A request that was checked. Throws kLimit if the prompt does not fit the context or the request
  // the cache memory, kUsage for an empty prompt, options out of range, or pictures that have not
  // as many rows as the prompt has patch tokens; kBadData for a token outside the vocabulary. Any
  // thread may call it.
  struct Job;
  std::shared_ptr<Job> prepare(Request request, Events events) const;
  // From now on its events tell what becomes of it.
  void enqueue(std::shared_ptr<Job> job, uint64_t id);

  // A request that is not there any more is no error. What was said so far is its answer.
  void cancel(uint64_t id);

  // One pass; false if there is nothing to do. What goes wrong with a request goes to its events.
  bool step();

  // Logits after every token of the prompt, in batches, now. Nothing is kept. Throws as submit().
  void score(const Prompt& prompt, const EachLogits& each, const Progress& progress = {});

  // Prompts that begin as this file does go on from it; its pages are used where they lie and stay
  // as long as the scheduler. Its identity must be identity().
  void adopt(std::shared_ptr<const ContextFile> file);
  // Makes the file hold the longest beginning of this text that is known: what a request had read
  // and said, as long as nothing had to give way. Throws what save_context() throws, kNotFound when
  // nothing is known.
  ContextSaved save(const std::filesystem::path& path, const Prompt& text);
  // Whose files these are: the model's, read in this way.
  ContextIdentity identity() const { return context_identity(model_, options_); }

  // Throws kLimit if a prompt of so many tokens does not fit the context.
  void expect_room(int64_t tokens) const;
  // Throws kUsage unless there are as many patch tokens as the pictures have, if there are
  // pictures.
  void expect_patches(std::span<const Token> tokens, std::span<const PictureTokens> pictures) const;

  int64_t context() const { return context_tokens_; }
  const CacheLayout& layout() const { return layout_; }
  SchedulerState state() const;

  // Forgets what nobody uses.
  void forget();

 private:
  struct Sequence;  // one answer: its cache, and where it is

  int64_t pages_for(int64_t length, int64_t shared) const;
  void expect_prompt(const Prompt& prompt) const;
  void drop_cancelled();
  void end(const std::shared_ptr<Job>& job, FinishReason reason);
  bool admit(Job& job);
  void skip_known_chunks(Sequence& sequence);
  void take_room(std::span<const SequenceSlice> slices);
  void run_batch(std::span<Sequence* const> batch, std::span<const SequenceSlice> slices,
                 int64_t rows, int64_t answers, int64_t prompt_tokens);
  void advance(Sequence& sequence, ConstMatrixView states, std::span<const float> logits);
  void score_prompt(Sequence& sequence, std::span<const float> logits);
  void add_states(Sequence& sequence, ConstMatrixView states);
  void fork(Sequence& first, std::vector<Sequence*>& out);
  void draw(Sequence& sequence, std::span<const float> logits);
  void say(Sequence& sequence, const std::string& piece);
  void keep(Sequence& sequence, bool finished);
  void finish(Sequence& sequence, FinishReason reason);
  void fail(Job& job, std::exception_ptr error);
  void close(Sequence& sequence);

  const Model& model_;
  Context& context_;
  const EngineOptions options_;
  const CacheLayout layout_;
  const int64_t context_tokens_;
  PagePool pool_;
  std::vector<std::shared_ptr<const ContextFile>> files_;  // whose pages the tree holds
  PrefixTree tree_;
  const bool reuse_chunks_;
  Decoder decoder_;
  uint64_t next_user_ = 1;
  int64_t promised_ = 0;                          // pages, to those that run
  std::list<std::shared_ptr<Job>> waiting_;       // in order of their turn
  std::list<std::unique_ptr<Sequence>> running_;  // in order of their turn
  std::vector<float> logits_;
  std::vector<float> own_;      // an answer's copy of its logits, which bias and penalties change
  AlignedArray<float> states_;  // of prompts that are embedded
  StepClock clock_;
};

}  // namespace drover
