// A model on this machine answers needle questions.
#pragma once

#include <atomic>

#include "engine/engine.h"
#include "eval/needle_answerer.h"
#include "model/model.h"

namespace drover {

// The layout of prompts for a tokenizer: with a chat format the content is a user's turn, without
// one it is continued as it is.
PromptLayout model_layout(const Tokenizer& tokenizer, ChatFormat format);

class LocalAnswerer : public NeedleAnswerer {
 public:
  // All must outlive it. cancel: looked at while reading; may be null.
  LocalAnswerer(const Model& model, Context& context, const EngineOptions& options,
                const std::atomic<bool>* cancel);

  const PromptLayout& layout() const override { return layout_; }
  NeedleAnswer answer(const NeedlePrompt& prompt) override;

 private:
  Engine engine_;
  PromptLayout layout_;
  GenerateOptions options_;
  const std::atomic<bool>* cancel_;
};

}  // namespace drover
