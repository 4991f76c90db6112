#include "server/server.h"

#include <fmt/chrono.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <mutex>
#include <shared_mutex>

#include "api/errors.h"
#include "base/error.h"
#include "server/metrics.h"
#include "server/openapi.h"
#include "server/page.h"
#include "server/routes.h"

namespace drover {
namespace {

namespace json = boost::json;

enum class Life { kLoading, kOpen, kDraining };

// What the HTTP floor refuses by itself, in the API's words.
ApiError refusal_of(int status, std::string_view message) {
  const std::string text(message);
  switch (status) {
    case 408:
      return api_refusal(Refusal::kTooSlow, text);
    case 413:
      return api_refusal(Refusal::kTooLarge, text);
    case 429:
      return api_refusal(Refusal::kTooMany, text);
    case 503:
      return api_refusal(Refusal::kNotReady, text);
    default: {
      ApiError error =
          api_error(Error(status < 500 ? ErrorKind::kUsage : ErrorKind::kInternal, text));
      error.status = status;
      error.param.reset();
      return error;
    }
  }
}

// "Bearer KEY", as all clients send it, or Anthropic's x-api-key.
std::string_view key_of(const HttpRequest& request) {
  if (const std::string* header = request.header("Authorization")) {
    constexpr std::string_view kBearer = "bearer ";
    std::string_view value = *header;
    const bool bearer =
        value.size() >= kBearer.size() &&
        std::equal(kBearer.begin(), kBearer.end(), value.begin(),
                   [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b - 'A' + 'a' : b); });
    if (!bearer) return {};
    value.remove_prefix(kBearer.size());
    while (value.starts_with(' ')) value.remove_prefix(1);
    return value;
  }
  const std::string* header = request.header("x-api-key");
  return header == nullptr ? std::string_view() : *header;
}

}  // namespace

std::string access_line(const HttpAccess& access, AccessLog form) {
  const auto now =
      std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  const std::string time = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
  if (form == AccessLog::kJson) {
    return json::serialize(json::object{{"time", time},
                                        {"method", access.method},
                                        {"path", access.path},
                                        {"status", access.status},
                                        {"bytes", access.bytes},
                                        {"seconds", access.seconds},
                                        {"peer", access.peer},
                                        {"id", access.id},
                                        {"complete", access.complete}});
  }
  return fmt::format("{} {} {} {} {}{} {} bytes {:.3f} s {}", time, access.peer,
                     access.method.empty() ? "-" : access.method,
                     access.path.empty() ? "-" : printable(access.path, 300), access.status,
                     access.complete ? "" : " cut", access.bytes, access.seconds, access.id);
}

class Server::Impl {
 public:
  explicit Impl(ServerOptions options)
      : keys_(std::move(options.keys)),
        hosts_(std::move(options.hosts)),
        version_(options.version),
        description_(json::serialize(openapi_document(version_))),
        waits_for_(std::move(options.waits_for)),
        page_(options.page ? std::make_optional<Page>() : std::nullopt),
        metrics_(version_, options.expert_counters) {
    const std::unique_lock lock(mutex_);  // the first request may come before this is done
    HttpOptions http = std::move(options.http);
    http.refuse = [](int status, std::string_view message, const HttpRequest& request) {
      return error_answer(refusal_of(status, message), caller_of(request));
    };
    http.admit = [this](const HttpRequest& request) { return admit(request); };
    if (options.access_log != AccessLog::kOff && options.log) {
      http.access_log = [form = options.access_log, log = std::move(options.log)](
                            const HttpAccess& access) { log(access_line(access, form)); };
    }
    http_.emplace(std::move(http), [this](HttpRequest request, HttpReply reply) {
      handle(std::move(request), std::move(reply));
    });
  }

  ~Impl() {
    life_ = Life::kDraining;
    http_->stop();
  }

  std::vector<std::string> addresses() const { return http_->addresses(); }

  void open(const Model& model, Context& context, ServiceOptions options) {
    auto service = std::make_unique<Service>(model, context, metrics_, std::move(options));
    const std::unique_lock lock(mutex_);
    service_ = std::move(service);
    life_ = Life::kOpen;
  }

  bool drain(std::chrono::milliseconds patience) {
    life_ = Life::kDraining;
    const bool all = http_->drain(patience);
    if (!all) {
      const std::shared_lock lock(mutex_);
      if (service_) service_->abandon();
    }
    // Their last words.
    if (!all) http_->drain(std::chrono::seconds(2));
    return all;
  }

 private:
  // Before the body is read: who asks for what is not there, or without a key, need not send it.
  std::optional<HttpAnswer> admit(const HttpRequest& request) {
    const auto refused = [&](Refusal refusal, std::string message) {
      return error_answer(api_refusal(refusal, std::move(message)), caller_of(request));
    };
    const std::string* host = request.header("Host");
    if (host != nullptr && !may_be_called(*host)) {
      metrics_.refused("host");
      return refused(Refusal::kForbidden,
                     fmt::format("Host: {} is no name of this server; --allow-host makes it one",
                                 printable(*host)));
    }
    // A browser says which page asks. One from elsewhere could not read the answer, but could have
    // the model at work.
    const std::string* origin = request.header("Origin");
    if (origin != nullptr && !may_be_called(host_of(*origin))) {
      metrics_.refused("origin");
      return refused(Refusal::kForbidden,
                     fmt::format("Origin: {} is not this server; --allow-host lets its pages ask",
                                 printable(*origin)));
    }
    if (page_ && page_->has(request.path)) {
      if (request.method == "GET" || request.method == "HEAD") return std::nullopt;
      return wrong_method(request, "GET, HEAD");
    }
    const auto route = find_route(request.method, request.path);
    // The description says what every copy of the program says, and tools read it without a key.
    const bool open_to_all =
        route && (route->route == Route::kHealth || route->route == Route::kOpenApi);
    if (!keys_.empty() && !open_to_all && keys_.owner(key_of(request)) == nullptr) {
      metrics_.refused("key");
      return refused(Refusal::kWrongKey, "this API key is not known here");
    }
    if (!route) {
      return refused(Refusal::kNoPath,
                     fmt::format("{}: there is nothing here", printable(request.path)));
    }
    if (!route->method_fits) return wrong_method(request, route->methods);
    return std::nullopt;
  }

  static HttpAnswer wrong_method(const HttpRequest& request, std::string_view methods) {
    HttpAnswer out =
        error_answer(api_refusal(Refusal::kWrongMethod,
                                 fmt::format("{}: expected {}, got {}", printable(request.path),
                                             methods, printable(request.method))),
                     caller_of(request));
    out.headers.emplace_back("Allow", methods);
    return out;
  }

  // "http://localhost:8080" to "localhost:8080"; others, as "null", stay as they are.
  static std::string_view host_of(std::string_view origin) {
    const size_t scheme = origin.find("://");
    return scheme == std::string_view::npos ? origin : origin.substr(scheme + 3);
  }

  bool may_be_called(std::string_view host) const {
    const size_t port = host.rfind(':');
    if (port != std::string_view::npos && host.find(']', port) == std::string_view::npos) {
      host = host.substr(0, port);
    }
    return hosts_.empty() || std::find(hosts_.begin(), hosts_.end(), host) != hosts_.end();
  }

  void handle(HttpRequest request, HttpReply reply) {
    if (page_) {
      if (auto file = page_->answer(request)) {
        reply.send(std::move(*file));
        return;
      }
    }
    const RouteMatch route = *find_route(request.method, request.path);
    const std::string* owner = keys_.owner(key_of(request));
    const std::shared_lock lock(mutex_);
    if (route.route == Route::kVersion) {
      reply.send(200, {{"Content-Type", "application/json"}},
                 json::serialize(json::object{{"version", version_}}));
      return;
    }
    if (route.route == Route::kOpenApi) {
      reply.send(200, {{"Content-Type", "application/json"}}, description_);
      return;
    }
    if (route.route == Route::kMetrics && service_) {
      return service_->tell_metrics(http_->counters(), std::move(reply));
    }
    if (life_ != Life::kOpen) {
      reply.send(error_answer(
          api_refusal(Refusal::kNotReady,
                      life_ == Life::kLoading ? waits_for_ : "the server is about to end"),
          caller_of(request)));
      return;
    }
    if (route.route == Route::kHealth) {
      reply.send(200, {{"Content-Type", "application/json"}}, R"({"status":"ok"})");
      return;
    }
    service_->handle(route.route, route.rest, owner == nullptr ? "" : *owner, std::move(request),
                     std::move(reply));
  }

  const ApiKeys keys_;
  const std::vector<std::string> hosts_;
  const std::string version_;
  const std::string description_;  // of the API
  const std::string waits_for_;
  const std::optional<Page> page_;
  Metrics metrics_;
  std::atomic<Life> life_{Life::kLoading};
  std::shared_mutex mutex_;  // of the service's coming
  std::unique_ptr<Service> service_;
  std::optional<HttpServer> http_;  // ends first
};

Server::Server(ServerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Server::~Server() = default;
std::vector<std::string> Server::addresses() const { return impl_->addresses(); }
void Server::open(const Model& model, Context& context, ServiceOptions options) {
  impl_->open(model, context, std::move(options));
}
bool Server::drain(std::chrono::milliseconds patience) { return impl_->drain(patience); }

}  // namespace drover
