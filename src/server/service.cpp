#include "server/service.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/json.hpp>
#include <mutex>
#include <random>
#include <set>

#include "api/answer.h"
#include "api/anthropic.h"
#include "api/ask.h"
#include "api/models.h"
#include "api/request.h"
#include "api/stream.h"
#include "api/tokens.h"
#include "engine/picture_encoder.h"
#include "formats/json.h"
#include "image/decode.h"
#include "server/http/server_sent_events.h"

namespace drover {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr const char* kJson = "application/json";

// Bodies longer than this are read apart, so that no short one waits behind them.
constexpr size_t kLongBody = 64 * 1024;

// A request's values: a prompt of a million tokens is a million numbers, and a server of a smaller
// context has no use for so many. What they take, in time and memory, is most of what a body can.
JsonLimits body_limits(int64_t context) {
  return {.bytes = size_t{256} << 20,
          .values = 500'000 + 2 * static_cast<size_t>(context),
          .depth = 64};
}

HttpAnswer json_answer(const json::value& body) {
  return {200, {{"Content-Type", kJson}}, json::serialize(body)};
}

// Where Anthropic's clients look for the id that X-Request-Id has as well.
HttpHeaders headers_for(const Caller& caller) {
  if (caller.dialect != ApiDialect::kAnthropic) return {};
  return {{"request-id", caller.request_id}};
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
  const char* what = kind == ApiKind::kChat       ? "chatcmpl-"
                     : kind == ApiKind::kResponse ? "resp_"
                     : kind == ApiKind::kMessage  ? "msg_"
                                                  : "cmpl-";
  return fmt::format("{}{:016x}{:08x}", what, random_number(),
                     static_cast<uint32_t>(random_number()));
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

Caller caller_of(const HttpRequest& request) { return {dialect_of(request.path), request.id}; }

HttpAnswer error_answer(const ApiError& error, const Caller& caller, int64_t retry_after) {
  HttpAnswer out{error.status, headers_for(caller),
                 json::serialize(error_body(error, caller.dialect, caller.request_id))};
  out.headers.emplace_back("Content-Type", kJson);
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
  ApiKind kind;
  Caller caller;
  Admission::Ticket ticket;
  HttpReply reply;  // until the stream takes it
  std::optional<EventStream> stream;
  std::shared_ptr<AnswerStream> writer;  // what is said in it
  std::optional<ApiRequest> request;
  ApiName name;
  std::atomic<bool> cancel{false};
  std::atomic<bool> abandoned{false};  // by us, not by the client
  Clock::time_point came = Clock::now(), last_token{}, last_word{};
  bool reading = false;
  int64_t prompt_tokens = 0;
  HttpHeaders headers = {};  // of the answer
  std::mutex gate;           // held until the head of a stream is written
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
        engine_(model, context, options_.engine),
        body_limits_(body_limits(engine_.context())) {
    if (model.has_vision()) encoder_.emplace(model, context);
    if (!options_.pictures.fetch.hosts.empty()) fetcher_.emplace(options_.pictures);
    if (options_.recall) vouched_ = vouched_length(*options_.recall, options_.recall->threshold);
  }

  void handle(Route route, std::string rest, std::string owner, HttpRequest request,
              HttpReply reply) {
    if (const auto kind = kind_of(route)) {
      return enter(*kind, std::move(owner), std::move(request), std::move(reply));
    }
    switch (route) {
      case Route::kModels:
        return give(reply, json_answer(models_json(served())));
      case Route::kModel:
        return give(reply, model_named(rest, caller_of(request)));
      case Route::kTokenizerInfo:
        return give(reply, json_answer(tokenizer_info(model_, engine_.context())));
      case Route::kTokenize:
      case Route::kDetokenize:
      case Route::kCountTokens: {
        const size_t bytes = request.body.size();
        return later(bytes, [this, route, request = std::move(request),
                             reply = std::make_shared<HttpReply>(std::move(reply))] {
          tokens(route, request, *reply);
        });
      }
      default:
        break;  // the server's own
    }
    give(reply,
         error_answer(api_refusal(Refusal::kNoPath, "there is nothing here"), caller_of(request)));
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
    if (fetcher_) fetcher_->stop();  // readers may still come, and are told so
    readers_.join();
    long_readers_.join();
    abandon();
  }

  void tell_metrics(HttpCounters http, HttpReply reply) {
    later(0, [this, http = std::move(http), reply = std::make_shared<HttpReply>(std::move(reply))] {
      // Asked between two steps of the engine.
      const std::string text =
          metrics_.text(engine_.state(), http, admission_.requests(), admission_.tokens());
      reply->send(200, {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"}}, text);
    });
  }

 private:
  using TurnPtr = std::shared_ptr<Turn>;
  using PicturesPtr = std::shared_ptr<const FetchedPictures>;

  static void give(HttpReply& reply, HttpAnswer answer) { reply.send(std::move(answer)); }

  // Reads a body of so many bytes on a thread of the service.
  template <typename Task>
  void later(size_t bytes, Task task) {
    boost::asio::post(bytes > kLongBody ? long_readers_ : readers_, std::move(task));
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
  HttpAnswer model_named(const std::string& name, const Caller& caller) const {
    if (!is_ours(name)) return error_answer(no_model(name), caller);
    return json_answer(model_json({name, created_, engine_.context()}));
  }

  // The body's object. Throws ApiError.
  json::object body_of(const HttpRequest& request) const {
    const std::string* type = request.header("Content-Type");
    if (type != nullptr && type->find("json") == std::string::npos) {
      throw api_refusal(Refusal::kNotJson,
                        "Content-Type: expected application/json, got " + printable(*type));
    }
    try {
      json::value value = parse_json(request.body, "body", body_limits_);
      if (value.is_object()) return std::move(value.get_object());
    } catch (const Error& error) {
      throw api_error(Error(ErrorKind::kUsage, error.message(), error.hint()));
    }
    throw api_error(Error(ErrorKind::kUsage, "body: expected a JSON object"));
  }

  void tokens(Route route, const HttpRequest& request, HttpReply& reply) {
    const Caller caller = caller_of(request);
    try {
      const json::object body = body_of(request);
      HttpAnswer out = json_answer(
          route == Route::kTokenize
              ? tokenize_answer(body, model_, options_.format, engine_.context())
          : route == Route::kDetokenize ? detokenize_answer(body, model_)
                                        : count_tokens_answer(body, model_, options_.format));
      for (auto& header : headers_for(caller)) out.headers.push_back(std::move(header));
      give(reply, std::move(out));
    } catch (const ApiError& error) {
      give(reply, error_answer(error, caller));
    } catch (...) {
      give(reply, error_answer(error_of(std::current_exception(), ApiKind::kCompletion), caller));
    }
  }

  // ---- a request to the model ----

  void enter(ApiKind kind, std::string owner, HttpRequest request, HttpReply reply) {
    Caller caller = caller_of(request);
    Crowd crowd;
    Admission::Ticket ticket = admission_.enter(owner, crowd);
    if (!ticket) {
      const bool mine = crowd == Crowd::kKey;
      metrics_.refused(mine ? "key_limit" : "queue_full");
      return give(
          reply, error_answer(
                     mine ? api_refusal(Refusal::kTooMany, "this key has too many requests in hand")
                          : api_refusal(Refusal::kOverloaded, "too many requests are in hand"),
                     caller, admission_.retry_after()));
    }
    auto turn = std::make_shared<Turn>();
    turn->kind = kind;
    turn->headers = headers_for(caller);
    turn->caller = std::move(caller);
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
    read_later(turn, std::move(owner), std::make_shared<HttpRequest>(std::move(request)), nullptr);
  }

  void read_later(const TurnPtr& turn, std::string owner, std::shared_ptr<HttpRequest> request,
                  PicturesPtr pictures) {
    const size_t bytes = request->body.size();
    later(bytes, [this, turn, owner = std::move(owner), request = std::move(request),
                  pictures = std::move(pictures)]() mutable {
      try {
        read(turn, owner, std::exchange(request, nullptr), std::exchange(pictures, nullptr));
      } catch (const ApiError& error) {
        fail(*turn, error);
      } catch (...) {
        fail(*turn, error_of(std::current_exception(), turn->kind));
      }
    });
  }

  // A request that names pictures of other hosts is read twice: to know which they are, with a dot
  // in their place, and again when they are there.
  void read(const TurnPtr& turn, const std::string& owner,
            std::shared_ptr<HttpRequest> http_request, PicturesPtr pictures) {
    if (pictures && turn->cancel) {
      throw api_refusal(Refusal::kNotReady, "the server is about to end");
    }
    std::vector<std::string> wanted;
    const auto bring = [&](std::string_view url) -> Image {
      if (pictures) return decode_image(pictures->bytes(url), read_picture_url(url).host);
      fetcher_->expect_allowed(url);
      wanted.emplace_back(url);
      return {1, 1, {0, 0, 0}};
    };
    {
      const json::object body = body_of(*http_request);
      turn->request = read_api_request(turn->kind, body, model_, options_.format,
                                       fetcher_ ? PictureSource(bring) : PictureSource());
    }
    ApiRequest& request = *turn->request;
    if (!is_ours(request.model)) throw no_model(request.model);
    if (!wanted.empty()) {
      return fetcher_->fetch(std::move(wanted), &turn->cancel,
                             [this, turn, owner, http_request](PicturesPtr fetched) {
                               read_later(turn, owner, http_request, std::move(fetched));
                             });
    }
    http_request.reset();
    pictures.reset();
    turn->name = {new_id(turn->kind), options_.names.front(), now_in_seconds()};
    int64_t tokens = 0;
    const uint64_t seed = request.seeded ? 0 : random_number();
    for (Request& one : request.requests) {
      const auto read = static_cast<int64_t>(one.prompt.tokens.size());
      turn->prompt_tokens += read;
      // A number of the client's own: no answer is longer than the context.
      const int64_t most = std::clamp<int64_t>(one.options.max_tokens, 0, engine_.context());
      tokens += read + most * one.samples;
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
      turn->headers.emplace_back(
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
    // The first events that can come of a request wait for the head of its stream.
    events.prompt = [this, turn](uint64_t done, uint64_t all) {
      const std::lock_guard passing(turn->gate);
      progress(*turn, done, all);
    };
    events.token = [this, turn](size_t prompt, const DrawnToken& drawn) {
      token(*turn, prompt, drawn);
    };
    events.done = [this, turn](std::vector<std::vector<Answer>> answers, std::exception_ptr error) {
      const std::lock_guard passing(turn->gate);
      done(*turn, answers, error);
    };
    std::vector<Request> requests = turn->request->requests;
    if (!turn->request->stream) {
      ask(engine_, std::move(requests), std::move(events));
      return;
    }
    // The stream begins when the engine has taken the request, which may still refuse it: so its
    // writer is there, and nothing is written before. Waiting for the engine's thread instead,
    // between two of its steps, would cost each of many streams that come together a step of the
    // others.
    turn->writer =
        make_stream(*turn->request, model_.tokenizer(), turn->name,
                    [this, turn = turn.get()](std::string_view name, std::string_view data) {
                      say(*turn, name, data);
                    });
    events.stream = turn->writer;
    const std::lock_guard closed(turn->gate);
    ask(engine_, std::move(requests), std::move(events));
    turn->stream.emplace(std::move(turn->reply), 200, turn->headers, options_.silence);
    turn->writer->begin();
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

  // Of one answer: the first.
  void token(Turn& turn, size_t prompt, const DrawnToken& token) {
    if (prompt != 0 || token.sample != 0) return;
    const auto now = Clock::now();
    if (turn.last_token == Clock::time_point()) {
      metrics_.first_token(now - turn.came);
    } else {
      metrics_.between_tokens(now - turn.last_token);
    }
    turn.last_token = now;
  }

  void say(Turn& turn, std::string_view name, std::string_view data) {
    turn.last_word = Clock::now();
    if (!turn.stream->event(name, data)) turn.cancel = true;
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
    // Whoever has the answer may ask again at once, and finds room.
    end(turn, finish_reason_name(reason), cached, written);
    if (turn.stream) {
      turn.stream->end();
    } else {
      HttpAnswer answer =
          json_answer(api_answer(*turn.request, answers, model_.tokenizer(), turn.name));
      for (auto& header : turn.headers) answer.headers.push_back(std::move(header));
      turn.reply.send(std::move(answer));
    }
  }

  // What went wrong, as the answer or as the last event of the stream.
  void fail(Turn& turn, const ApiError& error) {
    const int64_t retry_after = admission_.retry_after();
    end(turn, turn.cancel && !turn.abandoned ? "cancelled" : fmt::format("{}", error.status), 0, 0);
    if (turn.stream) {
      turn.writer->fail(error);
      turn.stream->end();
    } else {
      turn.reply.send(error_answer(error, turn.caller, retry_after));
    }
  }

  void end(Turn& turn, std::string_view reason, int64_t cached, int64_t written) {
    metrics_.finished(api_path(turn.kind), reason, Clock::now() - turn.came, turn.prompt_tokens,
                      cached, written);
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
  std::optional<PictureFetcher> fetcher_;
  boost::asio::thread_pool readers_{1}, long_readers_{1};
  Engine engine_;  // ends first of what it speaks to: what it still has to say is heard
  const JsonLimits body_limits_;
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
