// A model at an address: what `drover serve` is. It listens at once, says 503 until the model is
// there, and ends in order.
//
//   Server server(options);
//   const auto model = Model::load(path);
//   server.open(*model, context, service_options);
//   ... until a signal ...
//   server.drain(std::chrono::seconds(30));
//
// One thread opens, drains and destroys it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/http/http_server.h"
#include "server/keys.h"
#include "server/service.h"

namespace drover {

enum class AccessLog { kOff, kText, kJson };

struct ServerOptions {
  HttpOptions http;  // its hooks are the server's to set
  ApiKeys keys;      // empty: everybody may ask
  // What clients may call this server in their Host header; empty: anything. A page from elsewhere
  // whose name was pointed at this machine (DNS rebinding) calls it by that name.
  std::vector<std::string> hosts;
  bool page = true;  // at `/`; it loads without a key and asks for one where the API does
  std::string version;
  bool expert_counters = false;  // in the metrics, see Metrics
  // What /health and every request are told before open().
  std::string waits_for = "the model is being loaded";
  AccessLog access_log = AccessLog::kText;
  // Gets a line of the access log without its end, on a network thread.
  std::function<void(std::string_view line)> log;
};

class Server {
 public:
  // Listens; throws as HttpServer.
  explicit Server(ServerOptions options);
  ~Server();  // at once
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::vector<std::string> addresses() const;

  // From now on requests are answered. `model` and `context` must outlive the server.
  void open(const Model& model, Context& context, ServiceOptions options);

  // Stops accepting and says 503 to who still asks; requests in hand have this long to end, then
  // they end with an error that says why. Returns whether all ended by themselves.
  bool drain(std::chrono::milliseconds patience);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// A line of the access log: what was asked and how it ended, never what was said.
std::string access_line(const HttpAccess& access, AccessLog form);

}  // namespace drover
