#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <span>

namespace drover {
namespace {

using prometheus::Histogram;

// From a token of a small model to a prompt of hours.
const Histogram::BucketBoundaries kSeconds = {
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200};

}  // namespace

struct Metrics::State {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  prometheus::Family<prometheus::Counter>& requests =
      prometheus::BuildCounter()
          .Name("drover_requests_total")
          .Help("Requests to the model that ended, by route and reason")
          .Register(*registry);
  prometheus::Family<prometheus::Counter>& refusals =
      prometheus::BuildCounter()
          .Name("drover_refusals_total")
          .Help("Requests that were refused before any work, by reason")
          .Register(*registry);
  prometheus::Family<prometheus::Counter>& http_requests =
      prometheus::BuildCounter()
          .Name("drover_http_requests_total")
          .Help("Answers by HTTP status; 0: cut before one")
          .Register(*registry);
  // One number for each layer: of 24 layers with 128 experts their counts would be 3,072.
  prometheus::Family<prometheus::Gauge>& expert_load =
      prometheus::BuildGauge()
          .Name("drover_expert_load_ratio")
          .Help(
              "Tokens of a layer's busiest expert over the mean of its experts, so far; 1 is even")
          .Register(*registry);
  prometheus::Family<prometheus::Counter>* experts = nullptr;  // if wanted
  prometheus::Counter& prefix_hits =
      counter("drover_prefix_hits_total", "Requests whose prompt began with what was known");
  prometheus::Counter& prompt_tokens = counter("drover_prompt_tokens_total", "Tokens of prompts");
  prometheus::Counter& cached_tokens =
      counter("drover_prompt_tokens_cached_total", "Tokens of prompts that were known");
  prometheus::Counter& answer_tokens =
      counter("drover_generation_tokens_total", "Tokens of answers");
  prometheus::Counter& bytes_in = counter("drover_http_received_bytes_total", "Bytes from clients");
  prometheus::Counter& bytes_out = counter("drover_http_sent_bytes_total", "Bytes to clients");
  Histogram& queue =
      histogram("drover_queue_seconds", "From a request's coming to the reading of its prompt");
  Histogram& first =
      histogram("drover_time_to_first_token_seconds", "From a request's coming to its first token");
  Histogram& between = histogram("drover_inter_token_seconds", "Between two tokens of an answer");
  Histogram& whole = histogram("drover_request_seconds", "Of a request, whole");
  prometheus::Gauge& in_hand =
      gauge("drover_requests_in_hand", "Requests that wait or are worked on");
  prometheus::Gauge& tokens_in_hand =
      gauge("drover_tokens_in_hand", "Of their prompts, and of answers as long as they may be");
  prometheus::Gauge& waiting =
      gauge("drover_requests_waiting", "Requests that wait for their turn");
  prometheus::Gauge& running =
      gauge("drover_sequences_running", "Prompts that are read, and answers that are written");
  prometheus::Gauge& cache_used =
      gauge("drover_cache_used_bytes", "Of the cache, what is kept too");
  prometheus::Gauge& cache_promised = gauge(
      "drover_cache_promised_bytes", "Of the cache, to those that run, for their whole length");
  prometheus::Gauge& cache_limit = gauge("drover_cache_limit_bytes", "Of the cache, at most");
  prometheus::Gauge& kept = gauge("drover_cache_kept_tokens", "Of texts that are known");
  prometheus::Gauge& connections = gauge("drover_http_connections", "Open ones");

  std::mutex mutex;  // of what follows
  HttpCounters seen;
  std::vector<int64_t> seen_experts;

  // Of a model without experts there is nothing to say, nor of a layer without, or before a token.
  void tell_experts(const SchedulerState& engine) {
    const auto count = static_cast<size_t>(engine.experts);
    if (count == 0) return;
    seen_experts.resize(engine.expert_tokens.size());
    for (size_t layer = 0; layer * count < engine.expert_tokens.size(); ++layer) {
      const auto tokens = std::span(engine.expert_tokens).subspan(layer * count, count);
      const int64_t all = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
      if (all == 0) continue;
      const std::string name = std::to_string(layer);
      expert_load.Add({{"layer", name}})
          .Set(static_cast<double>(*std::max_element(tokens.begin(), tokens.end())) *
               static_cast<double>(count) / static_cast<double>(all));
      for (size_t e = 0; experts != nullptr && e < count; ++e) {
        int64_t& before = seen_experts[layer * count + e];
        experts->Add({{"layer", name}, {"expert", std::to_string(e)}})
            .Increment(static_cast<double>(tokens[e] - std::exchange(before, tokens[e])));
      }
    }
  }

  prometheus::Counter& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(*registry).Add({});
  }
  prometheus::Gauge& gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(*registry).Add({});
  }
  Histogram& histogram(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(*registry).Add({}, kSeconds);
  }
};

Metrics::Metrics(std::string_view version, bool experts) : state_(std::make_unique<State>()) {
  if (experts) {
    state_->experts = &prometheus::BuildCounter()
                           .Name("drover_expert_tokens_total")
                           .Help("Tokens that a layer sent to an expert")
                           .Register(*state_->registry);
  }
  prometheus::BuildGauge()
      .Name("drover_build_info")
      .Help("1, with the version")
      .Register(*state_->registry)
      .Add({{"version", std::string(version)}})
      .Set(1);
}
Metrics::~Metrics() = default;

void Metrics::queued(std::chrono::duration<double> time) { state_->queue.Observe(time.count()); }

void Metrics::first_token(std::chrono::duration<double> time) {
  state_->first.Observe(time.count());
}

void Metrics::between_tokens(std::chrono::duration<double> time) {
  state_->between.Observe(time.count());
}

void Metrics::finished(std::string_view route, std::string_view reason,
                       std::chrono::duration<double> time, int64_t prompt_tokens,
                       int64_t cached_tokens, int64_t answer_tokens) {
  State& s = *state_;
  s.requests.Add({{"route", std::string(route)}, {"reason", std::string(reason)}}).Increment();
  s.whole.Observe(time.count());
  s.prompt_tokens.Increment(static_cast<double>(prompt_tokens));
  s.cached_tokens.Increment(static_cast<double>(cached_tokens));
  if (cached_tokens > 0) s.prefix_hits.Increment();
  s.answer_tokens.Increment(static_cast<double>(answer_tokens));
}

void Metrics::refused(std::string_view why) {
  state_->refusals.Add({{"reason", std::string(why)}}).Increment();
}

std::string Metrics::text(const SchedulerState& engine, const HttpCounters& http,
                          int64_t requests_in_hand, int64_t tokens_in_hand) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  s.in_hand.Set(static_cast<double>(requests_in_hand));
  s.tokens_in_hand.Set(static_cast<double>(tokens_in_hand));
  s.waiting.Set(static_cast<double>(engine.waiting));
  s.running.Set(static_cast<double>(engine.running));
  s.cache_used.Set(static_cast<double>(engine.pages_used * engine.page_bytes));
  s.cache_promised.Set(static_cast<double>(engine.pages_promised * engine.page_bytes));
  s.cache_limit.Set(static_cast<double>(engine.pages * engine.page_bytes));
  s.kept.Set(static_cast<double>(engine.kept_tokens));
  s.tell_experts(engine);
  s.connections.Set(static_cast<double>(http.connections_open));
  s.bytes_in.Increment(static_cast<double>(http.bytes_in - s.seen.bytes_in));
  s.bytes_out.Increment(static_cast<double>(http.bytes_out - s.seen.bytes_out));
  for (const auto& [status, count] : http.requests) {
    s.http_requests.Add({{"status", std::to_string(status)}})
        .Increment(static_cast<double>(count - s.seen.requests[status]));
  }
  s.seen = http;
  return prometheus::TextSerializer().Serialize(s.registry->Collect());
}

}  // namespace drover
