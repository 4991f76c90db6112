// What a server does with requests: the routes of the API, on one model.
//
// Bodies are read and pictures are cut on a thread of the service's own, so that neither the
// network nor the engine waits for a large one; pictures of other hosts come on threads of their
// own; answers are written as the engine makes them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/errors.h"
#include "engine/engine.h"
#include "eval/recall_map.h"
#include "server/admission.h"
#include "server/fetch/picture_fetcher.h"
#include "server/http/http_server.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/routes.h"
#include "text/chat_format.h"

namespace drover {

struct ServiceOptions {
  std::vector<std::string> names;  // of the model, at least one; the first is what it says
  bool any_name = false;           // requests may name any other
  ChatFormat format = ChatFormat::kNone;
  EngineOptions engine;
  AdmissionLimits admission;
  bool share_prefixes = false;  // between keys, which then can find out what others have asked
  std::chrono::milliseconds request_time{0};  // of a request at most; 0: no limit
  std::chrono::milliseconds silence{10'000};  // in a stream, before a comment says that it goes on
  PictureFetcherOptions pictures;             // of other hosts; without such hosts none are fetched
  std::optional<RecallMap> recall;  // warns of prompts that are longer than it vouches for
  // Gets each request before the engine does, on the service's thread; may constrain its answers.
  std::function<void(Request& request)> prepare = {};
};

class Service {
 public:
  // `model`, `context` and `metrics` must outlive the service.
  Service(const Model& model, Context& context, Metrics& metrics, ServiceOptions options);
  // As abandon(), and waits. Nobody may be inside of handle().
  ~Service();

  // Answers a request whose route takes this method; `owner` of the key, empty where nobody needs
  // one. Any thread; returns at once.
  void handle(Route route, std::string rest, std::string owner, HttpRequest request,
              HttpReply reply);

  // Every request still in hand ends with an error that says why.
  void abandon();

  // The answer to GET /metrics, with what the HTTP floor counted.
  void tell_metrics(HttpCounters http, HttpReply reply);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Who asks, as far as an error and a header say so.
struct Caller {
  ApiDialect dialect = ApiDialect::kOpenAi;
  std::string request_id = {};
};
Caller caller_of(const HttpRequest& request);

// An error as an answer, in the caller's words; 429 and 503 say when to come again.
HttpAnswer error_answer(const ApiError& error, const Caller& caller, int64_t retry_after = 1);

}  // namespace drover
