// What a server counts of itself, for Prometheus: GET /metrics. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/scheduler.h"
#include "server/http/http_server.h"

namespace drover {

class Metrics {
 public:
  // experts: counts the tokens of each expert too, a series for each layer and expert.
  explicit Metrics(std::string_view version, bool experts = false);
  ~Metrics();

  // Of requests that were asked of the model.
  void queued(std::chrono::duration<double> time);          // until its prompt began to be read
  void first_token(std::chrono::duration<double> time);     // since it came
  void between_tokens(std::chrono::duration<double> time);  // of one answer
  void finished(std::string_view route, std::string_view reason, std::chrono::duration<double> time,
                int64_t prompt_tokens, int64_t cached_tokens, int64_t answer_tokens);
  void refused(std::string_view why);  // before any work

  // All of it as text, with what the floors below count.
  std::string text(const SchedulerState& engine, const HttpCounters& http, int64_t requests_in_hand,
                   int64_t tokens_in_hand);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace drover
