// How well a model predicts a text, and the logits behind it.
#pragma once

#include <filesystem>
#include <span>

#include "base/progress.h"
#include "engine/engine.h"

namespace drover {

struct TextScore {
  int64_t tokens = 0;         // that were predicted
  int64_t windows = 0;        // that they were cut into
  double nll = 0;             // sum of -ln p over them, nats
  double perplexity() const;  // e^(nll / tokens)
};

// Cuts the tokens into windows of the engine's context, each read from a fresh start, and scores
// every token but the first of a window. `bos`, if there is one, begins every window. Softmax in
// double. Throws kUsage for fewer than two tokens. A text with pictures is one window, else kLimit,
// and its control tokens, which the pictures' places are marked with, are not scored.
TextScore score_text(Engine& engine, const Tokenizer& tokenizer, const Prompt& text,
                     std::optional<Token> bos, const Progress& progress = {});

// Writes the logits after each token, float32 [tokens, V], as a NumPy .npy file that appears when
// it is whole. The tokens must fit the context.
void write_logits(Engine& engine, const Prompt& prompt, const std::filesystem::path& out,
                  const Progress& progress = {});

}  // namespace drover
