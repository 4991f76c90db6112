// drover serve MODEL: the OpenAI API on one model.

#include <signal.h>

#include <cstdio>
#include <mutex>
#include <thread>

#include "cli/command.h"
#include "cli/quantities.h"
#include "cli/service_manager.h"
#include "eval/recall_map.h"
#include "server/server.h"

namespace drover {
namespace {

struct Serve {
  ModelFlags model_flags;
  std::string host = "127.0.0.1", unix_socket, tls_cert, tls_key;
  uint16_t port = 8080;
  std::vector<std::string> names, allowed_hosts, picture_hosts;
  bool any_name = false, share_prefixes = false, without_model = false, no_page = false;
  bool private_pictures = false, expert_counters = false;
  std::string chat_format, api_key_file, recall_map, access_log = "text";
  int64_t parallel = 64, max_queue = 256, max_queue_tokens = 0, max_per_key = 0;
  int64_t network_threads = 1, body_megabytes = 64;
  double request_seconds = 0, drain_seconds = 30;

  void operator()() const;

 private:
  bool is_loopback() const {
    return host.starts_with("127.") || host == "localhost" || host == "::1";
  }
  void listen_without_model() const;
  ServerOptions server_options() const;
  ServiceOptions service_options(const Model& model) const;
};

AccessLog access_log_from_name(std::string_view name) {
  return name == "off" ? AccessLog::kOff : name == "json" ? AccessLog::kJson : AccessLog::kText;
}

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// Lines from several threads, whole.
void log_line(std::string_view line) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fputc('\n', stderr);
}

ServerOptions Serve::server_options() const {
  ServerOptions out;
  HttpListener listener;
  listener.certificate = tls_cert;
  listener.key = tls_key;
  if (!unix_socket.empty()) {
    listener.unix_path = unix_socket;
  } else {
    listener.host = host;
    listener.port = port;
  }
  out.http.listeners = {listener};
  // Whoever listens for the whole network is called by names that only others know.
  if (unix_socket.empty() && is_loopback()) {
    out.hosts = {"localhost", "127.0.0.1", "[::1]", host};
    out.hosts.insert(out.hosts.end(), allowed_hosts.begin(), allowed_hosts.end());
  } else {
    out.hosts = allowed_hosts;
  }
  out.http.limits.body_bytes = static_cast<size_t>(body_megabytes) << 20;
  out.http.threads = static_cast<int>(network_threads);
  if (!api_key_file.empty()) out.keys = ApiKeys::load(api_key_file);
  out.page = !no_page;
  out.version = DROVER_VERSION;
  out.access_log = access_log_from_name(access_log);
  out.expert_counters = expert_counters;
  out.log = log_line;
  return out;
}

ServiceOptions Serve::service_options(const Model& model) const {
  ServiceOptions out;
  out.names = names;
  if (out.names.empty()) {
    // Never a path: it would tell clients what is where on this machine.
    const std::filesystem::path path(model_flags.model);
    out.names = {(path.has_filename() ? path : path.parent_path()).stem().string()};
  }
  out.any_name = any_name;
  out.format = choose_chat_format(model, chat_format);
  out.engine = model_flags.engine_options();
  out.engine.parallel = parallel;
  out.admission = {max_queue, max_queue_tokens, max_per_key};
  out.share_prefixes = share_prefixes;
  out.request_time = milliseconds(request_seconds);
  out.pictures.fetch.hosts = AllowedHosts(picture_hosts);
  out.pictures.fetch.allow_private = private_pictures;
  out.pictures.request_bytes = static_cast<size_t>(body_megabytes) << 20;
  if (!recall_map.empty()) out.recall = load_recall_map(recall_map);
  return out;
}

void wait_for_signal() {
  while (!InterruptGuard::flag()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

// A freshly installed service has no model yet. It runs all the same, so that whoever looks is told
// what is missing.
void Serve::listen_without_model() const {
  ServerOptions options = server_options();
  options.waits_for = "no model is configured";
  Server server(std::move(options));
  for (const std::string& address : server.addresses()) {
    log_line(fmt::format("listening on {}", address));
  }
  log_line("no model is configured: every request is answered with 503");
  tell_service_manager("READY=1\nSTATUS=No model is configured; name one and restart");
  wait_for_signal();
  tell_service_manager("STOPPING=1");
}

void Serve::operator()() const {
  // Both signals first: one that comes while the model loads must not end it half-way.
  const InterruptGuard guard;
  if (model_flags.model.empty()) {
    if (without_model) return listen_without_model();
    throw Error(ErrorKind::kUsage, "--model is required",
                "with --without-model the server waits for one to be configured");
  }
  const AllowedHosts hosts(picture_hosts);  // a wrong one is said before the model is loaded
  Server server(server_options());
  for (const std::string& address : server.addresses()) {
    log_line(fmt::format("listening on {}", address));
  }
  if (api_key_file.empty() && unix_socket.empty() && !is_loopback()) {
    warn("anybody who reaches this address may ask; --api-key-file names who may");
  }
  tell_service_manager("STATUS=Loading the model");
  const std::unique_ptr<Model> model = model_flags.load();
  const std::unique_ptr<Context> context = model_flags.make_context();
  server.open(*model, *context, service_options(*model));
  log_line("ready");
  tell_service_manager("READY=1\nSTATUS=Answering");
  wait_for_signal();
  log_line("draining");
  // The manager's patience with a service that stops must be longer than ours with requests.
  constexpr double kLastWords = 10;
  tell_service_manager(fmt::format("STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC={:.0f}",
                                   (drain_seconds + kLastWords) * 1e6));
  const bool whole = server.drain(milliseconds(drain_seconds));
  log_line(whole ? "done" : "done; some requests were ended");
}

}  // namespace

void add_serve(CLI::App& app) {
  CLI::App& command = *app.add_subcommand("serve", "Answer the OpenAI API over HTTP");
  const auto serve = std::make_shared<Serve>();
  serve->model_flags.add_model(command);
  command.get_option("--model")->required(false);
  command.add_flag("--without-model", serve->without_model,
                   "Where no model is named, run and answer 503 instead of ending");
  serve->model_flags.add_mmproj(command);
  serve->model_flags.add_lora(command);
  command.add_option("--chat-format", serve->chat_format,
                     "llama4, llama3, chatml or none; what the model's file says if unset");

  const auto address = [&](const char* name, auto& value, const char* help) {
    return command.add_option(name, value, help)->group("Address");
  };
  address("--host", serve->host, "Address to listen on")->capture_default_str();
  address("--port", serve->port, "Port to listen on; 0: any free one")->capture_default_str();
  address("--unix-socket", serve->unix_socket, "Listen on this socket instead")->type_name("PATH");
  address("--allow-host", serve->allowed_hosts,
          "Another name that clients call this server by; on loopback only "
          "its own are heard")
      ->type_name("NAME")
      ->delimiter(',');
  CLI::Option* cert = address("--tls-cert,--ssl-cert-file", serve->tls_cert,
                              "Speak TLS with this certificate (PEM)")
                          ->type_name("FILE");
  CLI::Option* key =
      address("--tls-key,--ssl-key-file", serve->tls_key, "Its key (PEM)")->type_name("FILE");
  cert->needs(key);
  key->needs(cert);

  const auto clients = [&](const char* name, auto& value, const char* help) {
    return command.add_option(name, value, help)->group("Clients");
  };
  clients("-a,--alias,--served-model-name", serve->names,
          "Names of the model in the API; the file's if unset")
      ->type_name("NAME")
      ->delimiter(',');
  command.add_flag("--any-name", serve->any_name, "Requests may name any model")->group("Clients");
  command.add_flag("--no-page", serve->no_page, "The API alone, without the web page at /")
      ->group("Clients");
  clients("--api-key-file", serve->api_key_file,
          "Who may ask: lines of a name and a key, or its sha256:DIGEST")
      ->type_name("FILE");
  command
      .add_flag("--share-prefixes", serve->share_prefixes,
                "What one key's requests had read serves the others too")
      ->group("Clients");
  clients("--parallel", serve->parallel, "Answers that are written at the same time")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  clients("--max-queue", serve->max_queue,
          "Requests in hand, running ones too; beyond, clients are told to come again")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  clients("--max-queue-tokens", serve->max_queue_tokens,
          "Tokens of their prompts and answers; 0: no limit")
      ->capture_default_str();
  clients("--max-per-key", serve->max_per_key,
          "Requests in hand of one key; 0: no limit of its own")
      ->capture_default_str();
  clients("--request-seconds", serve->request_seconds, "Of a request at most; 0: no limit")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  clients("--body-megabytes", serve->body_megabytes, "Of a request's body at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  clients("--allow-pictures-from", serve->picture_hosts,
          "Fetch pictures from these hosts: HOST, *.HOST, or with :PORT")
      ->type_name("HOST")
      ->delimiter(',');
  command
      .add_flag("--allow-private-pictures", serve->private_pictures,
                "Even if their addresses are not of the public internet")
      ->group("Clients");
  clients("--network-threads", serve->network_threads, "Threads for HTTP and TLS")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  clients("--recall-map", serve->recall_map,
          "Written by `drover needle`: warns of prompts longer than it vouches for")
      ->type_name("FILE");
  command
      .add_flag("--expert-counters", serve->expert_counters,
                "In /metrics, the tokens of each expert of each layer, thousands of lines")
      ->group("Clients");
  clients("--access-log", serve->access_log, "text, json or off; never what was said")
      ->capture_default_str()
      ->check(CLI::IsMember({"text", "json", "off"}));
  clients("--drain-seconds", serve->drain_seconds, "That requests have to end after SIGTERM")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  serve->model_flags.add_machine(command);
  serve->model_flags.add_engine(command);
  command.callback([serve] { (*serve)(); });
}

}  // namespace drover
