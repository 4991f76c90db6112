// A request of the API, asked: all its prompts are handed to the engine together, and their answers
// come back together.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "api/request.h"
#include "api/stream.h"
#include "engine/engine.h"

namespace drover {

// What is heard of it, on the engine's thread; every member may be empty.
struct ApiEvents {
  Progress prompt;  // tokens read, of all prompts together
  std::function<void(size_t prompt, const DrawnToken& token)> token = {};
  std::shared_ptr<AnswerStream> stream = {};  // is told all that it wants to know, but no end
                                              // of an answer that was cancelled or came too late
  const std::atomic<bool>* cancel = nullptr;
  // The last thing: the answers to each prompt in order, or the first thing that went wrong, which
  // also cancels the other prompts.
  std::function<void(std::vector<std::vector<Answer>> answers, std::exception_ptr error)> done = {};
};

// Throws as Engine::submit(), and then nothing is asked. The pictures must be encoded. Returns the
// numbers for Engine::cancel().
std::vector<uint64_t> ask(Engine& engine, std::vector<Request> requests, ApiEvents events);

}  // namespace drover
