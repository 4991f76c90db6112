// Who answers needle questions: a model here, or one behind an OpenAI-compatible endpoint.
#pragma once

#include <cstdint>
#include <string>

#include "eval/needle_prompt.h"

namespace drover {

struct NeedleAnswer {
  std::string text;
  int64_t prompt_tokens = 0;  // as whoever answered counted them
  int64_t cached_tokens = 0;  // of these, not read again
};

class NeedleAnswerer {
 public:
  virtual ~NeedleAnswerer() = default;

  virtual const PromptLayout& layout() const = 0;
  // The most probable answer. Throws kCancelled when the user stopped it, and what else goes wrong.
  virtual NeedleAnswer answer(const NeedlePrompt& prompt) = 0;
};

}  // namespace drover
