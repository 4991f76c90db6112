#include "server/service.h"

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/json.hpp>
#include <mutex>
#include <random>
#include <set>

#include "api/answer.h"
#include "api/ask.h"
#include "api/embeddings.h"
#include "api/models.h"
#include "api/request.h"
#include "api/stream.h"
#include "api/tokens.h"
#include "engine/picture_encoder.h"
#include "formats/json.h"
#include "server/http/server_sent_events.h"

namespace drover {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr const char* kJson = "application/json";

// A request's values: a prompt of a million tokens is a million numbers.
constexpr JsonLimits kBodyLimits{.bytes = size_t{256} << 20, .values = 12'000'000, .depth = 64};

HttpAnswer json_answer(const json::value& body) {
  return {200, {{"Content-Type", kJson}}, json::serialize(body)};
}

int64_t now_in_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

uint64_t random_number() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

std::string new_id(ApiKind kind) {
  return fmt::format("{}-{:016x}{:08x}", kind == ApiKind::kChat ? "chatcmpl" : "cmpl",
                     random_number(), static_cast<uint32_t>(random_number()));
}

ApiKind kind_of(Route route) {
  return route == Route::kChat         ? ApiKind::kChat
         : route == Route::kCompletion ? ApiKind::kCompletion
                                       : ApiKind::kEmbedding;
}

ApiError error_of(std::exception_ptr error, ApiKind kind) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return api_error(e, kind);
  } catch (const std::bad_alloc&) {
    return api_refusal(Refusal::kOverloaded, "out of memory; try again later");
  } catch (...) {
    return api_error(Error(ErrorKind::kInternal, "something went wrong"), kind);
  }
}

}  // namespace

HttpAnswer error_answer(const ApiError& error, int64_t retry_after) {
  HttpAnswer out{error.status, {{"Content-Type", kJson}}, json::serialize(error.body())};
  if (error.status == 429 || error.status == 503) {
    out.headers.emplace_back("Retry-After", std::to_string(retry_after));
  }
  if (error.status == 401) out.headers.emplace_back("WWW-Authenticate", "Bearer");
  return out;
}

namespace {

// One request to the model, from its coming to its last byte. Reading it belongs to the service's
// thread, what follows to the engine's.
struct Turn {
  Route route;
  ApiKind kind;
  Admission::Ticket ticket;
  HttpReply reply;  // until the stream takes it
  std::optional<EventStream> stream;
  std::optional<ApiRequest> request;
  ApiName name;
  std::atomic<bool> cancel{false};
  std::atomic<bool> abandoned{false};  // by us, not by the client
  Clock::time_point came = Clock::now(), last_token{}, last_word{};
  bool reading = false, writing = false;
  int64_t prompt_tokens = 0;
  HttpHeaders warnings = {};
};

}  // namespace

class Service::Impl {
 public:
  Impl(const Model& model, Context& context, Metrics& metrics, ServiceOptions options)
      : model_(model),
        metrics_(metrics),
        options_(std::move(options)),
        created_(now_in_seconds()),
        admission_(options_.admission),
        engine_(model, context, options_.engine) {
    if (model.has_vision()) encoder_.emplace(model, context);
    if (options_.recall) vouched_ = vouched_length(*options_.recall, options_.recall->threshold);
  }

  void handle(Route route, std::string rest, std::string owner, HttpRequest request,
              HttpReply reply) {
    switch (route) {
      case Route::kModels:
        return give(reply, json_answer(models_json(served())));
      case Route::kModel:
        return give(reply, model_named(rest));
      case Route::kTokenizerInfo:
        return give(reply, json_answer(tokenizer_info(model_, engine_.context())));
      case Route::kTokenize:
      case Route::kDetokenize:
        return later([this, route, request = std::move(request),
                      reply = std::make_shared<HttpReply>(std::move(reply))] {
          tokens(route, request, *reply);
        });
      case Route::kChat:
      case Route::kCompletion:
      case Route::kEmbedding:
        return enter(route, std::move(owner), std::move(request), std::move(reply));
      case Route::kHealth:
      case Route::kVersion:
      case Route::kMetrics:
        break;  // the server's own
    }
    give(reply, error_answer(api_refusal(Refusal::kNoPath, "there is nothing here")));
  }

  void abandon() {
    const std::lock_guard lock(mutex_);
    for (Turn* turn : turns_) {
      turn->abandoned = true;
      turn->cancel = true;
    }
  }

  // What is still being read is asked, and ends at once.
  ~Impl() {
    abandon();
    readers_.join();
    abandon();
  }

  void tell_metrics(HttpCounters http, HttpReply reply) {
    later([this, http = std::move(http), reply = std::make_shared<HttpReply>(std::move(reply))] {
      // Asked between two steps of the engine.
      const std::string text = metrics_.text(engine_.state(), http, admission_.requests());
      reply->send(200, {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"}}, text);
    });
  }

 private:
  using TurnPtr = std::shared_ptr<Turn>;

  static void give(HttpReply& reply, HttpAnswer answer) { reply.send(std::move(answer)); }

  template <typename Task>
  void later(Task task) {
    boost::asio::post(readers_, std::move(task));
  }

  std::vector<ServedModel> served() const {
    std::vector<ServedModel> out;
    for (const std::string& name : options_.names) {
      out.push_back({name, created_, engine_.context()});
    }
    return out;
  }

  bool is_ours(std::string_view name) const {
    return name.empty() || options_.any_name ||
           std::find(options_.names.begin(), options_.names.end(), name) != options_.names.end();
  }
  ApiError no_model(std::string_view name) const {
    return api_refusal(Refusal::kNoModel, fmt::format("model: there is no {} here; this is {}",
                                                      printable(name), options_.names.front()));
  }
  HttpAnswer model_named(const std::string& name) const {
    if (!is_ours(name)) return error_answer(no_model(name));
    return json_answer(model_json({name, created_, engine_.context()}));
  }

  // The body's object. Throws ApiError.
  static json::object body_of(const HttpRequest& request) {
    const std::string* type = request.header("Content-Type");
    if (type != nullptr && type->find("json") == std::string::npos) {
      throw api_refusal(Refusal::kNotJson,
                        "Content-Type: expected application/json, got " + printable(*type));
    }
    try {
      json::value value = parse_json(request.body, "body", kBodyLimits);
      if (value.is_object()) return std::move(value.get_object());
    } catch (const Error& error) {
      throw api_error(Error(ErrorKind::kUsage, error.message(), error.hint()));
    }
    throw api_error(Error(ErrorKind::kUsage, "body: expected a JSON object"));
  }

  void tokens(Route route, const HttpRequest& request, HttpReply& reply) {
    try {
      const json::object body = body_of(request);
      give(reply,
           json_answer(route == Route::kTokenize
                           ? tokenize_answer(body, model_, options_.format, engine_.context())
                           : detokenize_answer(body, model_)));
    } catch (const ApiError& error) {
      give(reply, error_answer(error));
    } catch (...) {
      give(reply, error_answer(error_of(std::current_exception(), ApiKind::kCompletion)));
    }
  }

  // ---- a request to the model ----

  void enter(Route route, std::string owner, HttpRequest request, HttpReply reply) {
    Crowd crowd;
    Admission::Ticket ticket = admission_.enter(owner, crowd);
    if (!ticket) {
      const bool mine = crowd == Crowd::kKey;
      metrics_.refused(mine ? "key_limit" : "queue_full");
      return give(
          reply, error_answer(
                     mine ? api_refusal(Refusal::kTooMany, "this key has too many requests in hand")
                          : api_refusal(Refusal::kOverloaded, "too many requests are in hand"),
                     admission_.retry_after()));
    }
    auto turn = std::make_shared<Turn>();
    turn->route = route;
    turn->kind = kind_of(route);
    turn->ticket = std::move(ticket);
    turn->reply = std::move(reply);
    {
      const std::lock_guard lock(mutex_);
      turns_.insert(turn.get());
    }
    // Whoever leaves, its pages are free within one step of the engine.
    turn->reply.on_closed([weak = std::weak_ptr(turn)] {
      if (const TurnPtr left = weak.lock()) left->cancel = true;
    });
    later([this, turn, owner = std::move(owner),
           request = std::make_shared<HttpRequest>(std::move(request))]() mutable {
      try {
        read(turn, owner, std::exchange(request, nullptr));
      } catch (const ApiError& error) {
        fail(*turn, error);
      } catch (...) {
        fail(*turn, error_of(std::current_exception(), turn->kind));
      }
    });
  }

  void read(const TurnPtr& turn, const std::string& owner,
            std::shared_ptr<HttpRequest> http_request) {
    {
      const json::object body = body_of(*http_request);
      turn->request = read_api_request(turn->kind, body, model_, options_.format);
    }
    http_request.reset();
    ApiRequest& request = *turn->request;
    if (!is_ours(request.model)) throw no_model(request.model);
    turn->name = {new_id(turn->kind), options_.names.front(), now_in_seconds()};
    int64_t tokens = 0;
    const uint64_t seed = request.seeded ? 0 : random_number();
    for (Request& one : request.requests) {
      const auto read = static_cast<int64_t>(one.prompt.tokens.size());
      turn->prompt_tokens += read;
      const int64_t most = one.options.max_tokens;
      tokens += read + (most < 0 ? 0 : most) * one.samples;
      if (!options_.share_prefixes) one.salt = owner;
      if (!request.seeded) one.options.sampling.seed = seed;
      if (options_.request_time.count() > 0) one.deadline = turn->came + options_.request_time;
      if (options_.prepare) options_.prepare(one);
    }
    if (!turn->ticket.add_tokens(tokens)) {
      metrics_.refused("queue_full");
      throw api_refusal(Refusal::kOverloaded, "too many tokens are in hand");
    }
    if (vouched_ && turn->prompt_tokens > *vouched_) {
      turn->warnings.emplace_back(
          "X-Drover-Warning",
          fmt::format("a prompt of {} tokens; this model was found to remember up to {}",
                      turn->prompt_tokens, *vouched_));
    }
    see(*turn);
    ask_engine(turn);
  }

  // Encodes the pictures, between two steps of the engine.
  void see(Turn& turn) {
    if (turn.request->pictures.empty()) return;
    engine_.call([&] {
      turn.request->requests.front().prompt.pictures =
          encoder_->encode(turn.request->pictures, {}, &turn.cancel);
    });
    turn.request->pictures.clear();
  }

  void ask_engine(const TurnPtr& turn) {
    ApiEvents events;
    events.cancel = &turn->cancel;
    events.prompt = [this, turn](uint64_t done, uint64_t all) { progress(*turn, done, all); };
    events.done = [this, turn](std::vector<std::vector<Answer>> answers, std::exception_ptr error) {
      done(*turn, answers, error);
    };
    if (turn->request->stream) {
      // The stream begins when the engine has taken the request, which may still refuse it: so its
      // writer is there, and nothing is written before.
      events.stream = std::make_shared<StreamWriter>(
          *turn->request, model_.tokenizer(), turn->name,
          [this, turn = turn.get()](const json::object& chunk) { say(*turn, chunk); });
    }
    const std::shared_ptr<StreamWriter> writer = events.stream;
    std::vector<Request> requests = turn->request->requests;
    if (writer == nullptr) {
      ask(engine_, std::move(requests), std::move(events));
      return;
    }
    // No event may come before the head of the stream: the engine's thread is held until then.
    std::exception_ptr refused;
    engine_.call([&] {
      try {
        ask(engine_, std::move(requests), std::move(events));
      } catch (...) {
        refused = std::current_exception();
        return;
      }
      turn->stream.emplace(std::move(turn->reply), 200, turn->warnings, options_.silence);
      writer->begin();
    });
    if (refused) std::rethrow_exception(refused);
  }

  // ---- on the engine's thread ----

  void progress(Turn& turn, uint64_t done, uint64_t all) {
    const auto now = Clock::now();
    if (!turn.reading) {
      turn.reading = true;
      metrics_.queued(now - turn.came);
    }
    if (!turn.stream || options_.silence.count() == 0) return;
    if (now - turn.last_word < options_.silence) return;
    turn.last_word = now;
    turn.stream->comment(fmt::format("read {} of {} tokens", done, all));
  }

  void say(Turn& turn, const json::object& chunk) {
    const auto now = Clock::now();
    // The first chunk is the role alone, before anything was computed.
    if (turn.reading) {
      if (!turn.writing) {
        metrics_.first_token(now - turn.came);
      } else {
        metrics_.between_tokens(now - turn.last_token);
      }
      turn.writing = true;
      turn.last_token = now;
    }
    turn.last_word = now;
    if (!turn.stream->data(json::serialize(chunk))) turn.cancel = true;
  }

  void done(Turn& turn, const std::vector<std::vector<Answer>>& answers, std::exception_ptr error) {
    if (error) return fail(turn, error_of(error, turn.kind));
    int64_t cached = 0, written = 0;
    bool cancelled = false;
    FinishReason reason = FinishReason::kStop;
    for (const auto& of_prompt : answers) {
      if (!of_prompt.empty()) cached += of_prompt.front().cached_tokens;
      for (const Answer& answer : of_prompt) {
        written += static_cast<int64_t>(answer.tokens.size());
        reason = answer.finish;
        cancelled = cancelled || answer.finish == FinishReason::kCancelled ||
                    answer.finish == FinishReason::kDeadline;
      }
    }
    if (cancelled) {
      return fail(turn, turn.abandoned
                            ? api_refusal(Refusal::kNotReady, "the server is about to end")
                            : api_refusal(Refusal::kTooSlow, "the request took too long"));
    }
    if (turn.stream) {
      turn.stream->done();
    } else {
      const ApiRequest& request = *turn.request;
      HttpAnswer answer =
          json_answer(turn.kind == ApiKind::kEmbedding
                          ? embedding_answer(request, answers, turn.name.model)
                          : api_answer(request, answers, model_.tokenizer(), turn.name));
      for (auto& warning : turn.warnings) answer.headers.push_back(std::move(warning));
      if (turn.kind != ApiKind::kEmbedding) metrics_.first_token(Clock::now() - turn.came);
      turn.reply.send(std::move(answer));
    }
    end(turn, finish_reason_name(reason), cached, written);
  }

  // What went wrong, as the answer or as the last event of the stream.
  void fail(Turn& turn, const ApiError& error) {
    if (turn.stream) {
      turn.stream->data(json::serialize(error.body()));
      turn.stream->end();
    } else {
      turn.reply.send(error_answer(error, admission_.retry_after()));
    }
    end(turn, turn.cancel && !turn.abandoned ? "cancelled" : fmt::format("{}", error.status), 0, 0);
  }

  void end(Turn& turn, std::string_view reason, int64_t cached, int64_t written) {
    const auto name = turn.kind == ApiKind::kChat         ? "chat/completions"
                      : turn.kind == ApiKind::kCompletion ? "completions"
                                                          : "embeddings";
    metrics_.finished(name, reason, Clock::now() - turn.came, turn.prompt_tokens, cached, written);
    {
      const std::lock_guard lock(mutex_);
      turns_.erase(&turn);
    }
    turn.ticket = {};
  }

  const Model& model_;
  Metrics& metrics_;
  const ServiceOptions options_;
  const int64_t created_;
  std::optional<int64_t> vouched_;
  Admission admission_;
  std::mutex mutex_;
  std::set<Turn*> turns_;  // in hand
  std::optional<PictureEncoder> encoder_;
  boost::asio::thread_pool readers_{1};
  Engine engine_;  // the last, so that it ends first: what it still has to say is heard
};

Service::Service(const Model& model, Context& context, Metrics& metrics, ServiceOptions options)
    : impl_(std::make_unique<Impl>(model, context, metrics, std::move(options))) {}
Service::~Service() = default;

void Service::handle(Route route, std::string rest, std::string owner, HttpRequest request,
                     HttpReply reply) {
  impl_->handle(route, std::move(rest), std::move(owner), std::move(request), std::move(reply));
}

void Service::abandon() { impl_->abandon(); }
void Service::tell_metrics(HttpCounters http, HttpReply reply) {
  impl_->tell_metrics(std::move(http), std::move(reply));
}

}  // namespace drover
