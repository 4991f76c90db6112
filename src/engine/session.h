// One conversation with one model: feeds prompts, draws answers, keeps the cache between them.
//
// A Session owns its cache and the tokens in it. A new prompt that begins as the old text did, with
// the same pictures, is read from where it differs. One thread at a time uses a Session and its
// Context.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "cache/kv_cache.h"
#include "engine/prompt.h"
#include "engine/sampler.h"
#include "kernels/context.h"
#include "model/decoder.h"
#include "model/model.h"

namespace drover {

// Tokens of a prompt that are computed together. Sixteen experts get 128 of them each, enough to
// unpack an expert's weights for; and the activations of the largest models take half a gigabyte.
inline constexpr int64_t kDefaultBatch = 2048;

struct SessionOptions {
  int64_t context = 0;  // tokens; 0: what the model was made for, at most 32,768
  int64_t batch = kDefaultBatch;
  // f32, bf16 or i8; unset: f32 for f32 weights, else bf16
  std::optional<DType> cache_type = std::nullopt;
  InputObserver* observer = nullptr;  // of the decoder; must outlive the session
};

// The type of cached keys and values: what was asked for (kUsage unless f32, bf16 or i8), else f32
// for a model of f32 weights and bf16 for others.
DType choose_cache_type(const Model& model, std::optional<DType> asked);

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = -1;         // -1: until the model stops or the context is full
  std::vector<std::string> stop;   // strings that end the answer and are not part of it
  std::vector<Token> stop_tokens;  // as the chat format and the model say
  bool show_special = false;       // control tokens appear in the text
};

enum class FinishReason { kStop, kLength, kContext, kCancelled };
std::string_view finish_reason_name(
    FinishReason reason);  // "stop", "length", "context", "cancelled"

struct Answer {
  std::string text;
  std::vector<Token> tokens;  // without the token that ended it
  FinishReason finish = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, not computed again
  double prompt_seconds = 0;
  double answer_seconds = 0;
};

// What a session tells while it works. Every member may be empty.
struct Listener {
  Progress prompt;  // tokens of the prompt read so far, told after every layer of a batch
  std::function<void(std::string_view)> text;  // the next piece of the answer, whole code points
  const std::atomic<bool>* cancel = nullptr;   // looked at as often, and between tokens
};

class Session {
 public:
  // `model` and `context` must outlive the session.
  Session(const Model& model, Context& context, const SessionOptions& options = {});

  // Throws kLimit if a prompt of so many tokens does not fit the context.
  void expect_room(int64_t tokens) const;
  // Throws kUsage unless there are as many patch tokens as the pictures have, if there are
  // pictures.
  void expect_patches(std::span<const Token> tokens, std::span<const PictureTokens> pictures) const;

  // Reads the prompt and answers. Throws kLimit if the prompt does not fit the context, kUsage for
  // an empty prompt, options out of range, or pictures that have not as many rows as the prompt has
  // patch tokens. When cancelled, what was said so far is the answer.
  Answer generate(const Prompt& prompt, const GenerateOptions& options,
                  const Listener& listener = {});
  Answer generate(std::span<const Token> prompt, const GenerateOptions& options,
                  const Listener& listener = {}) {
    return generate(Prompt{{prompt.begin(), prompt.end()}}, options, listener);
  }

  // Logits after every token of the prompt, from a fresh start, in batches: each(first, rows) gets
  // logits [n, V] of tokens first, first+1, ... The view lasts for the call.
  void score(const Prompt& prompt,
             const std::function<void(int64_t first, ConstMatrixView logits)>& each,
             const Progress& progress = {});
  void score(std::span<const Token> tokens,
             const std::function<void(int64_t first, ConstMatrixView logits)>& each,
             const Progress& progress = {}) {
    score(Prompt{{tokens.begin(), tokens.end()}}, each, progress);
  }

  // Forgets the conversation.
  void clear();

  int64_t length() const { return cache_.length(); }
  int64_t context() const { return cache_.context(); }
  const KvCache& cache() const { return cache_; }

 private:
  // A picture in a text, and where its first patch token stands.
  struct Placed {
    int64_t first;
    std::shared_ptr<const EncodedPicture> picture;
  };
  using Embeddings = std::vector<const float*>;  // as SequenceSlice::embeddings

  // Where the pictures of a prompt stand, and what is put in the place of its tokens; both empty
  // without pictures. Throws kUsage as generate() does.
  std::pair<std::vector<Placed>, Embeddings> place(const Prompt& prompt) const;
  // Tokens at the start of the prompt that the cache holds with the same pictures.
  int64_t shared_with(const Prompt& prompt, std::span<const Placed> pictures) const;
  // The text now ends at `length`.
  void cut_text(int64_t length);
  // Appends tokens to cache and text; the logits of the last one are then in logits_. False when
  // cancelled on the way.
  bool feed(std::span<const Token> tokens, std::span<const float* const> embeddings,
            const Listener& listener, int64_t done, int64_t total);

  const Model& model_;
  Context& context_;
  SessionOptions options_;
  KvCache cache_;
  Decoder decoder_;
  std::vector<Token> text_;       // the tokens that the cache remembers
  std::vector<Placed> pictures_;  // and the pictures, whole or cut off, in them
  std::vector<float> logits_;     // [V], of the last token
};

// Finds the first stop string in a text that comes in pieces, and holds back what may be the
// beginning of one.
class StopFinder {
 public:
  explicit StopFinder(std::vector<std::string> stops);

  // Adds a piece; returns what can be shown now.
  std::string push(std::string_view piece);
  // No more pieces: returns what was held back.
  std::string flush();
  bool found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace drover
