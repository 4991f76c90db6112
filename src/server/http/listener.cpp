#include "server/http/listener.h"

#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/error.h"
#include "server/http/tls_context.h"

namespace drover {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// Long enough not to spin while the system has no descriptors, short enough not to be noticed.
constexpr std::chrono::milliseconds kPauseAfterError{100};

[[noreturn]] void fail(std::string_view doing, const std::string& where, const error_code& error) {
  throw_errno(doing, where, error.value());
}

bool belongs_to_one_client(const error_code& error) {
  return error == asio::error::connection_aborted || error == asio::error::connection_reset ||
         error == boost::system::errc::protocol_error;
}

struct Peer {
  std::string address;  // empty for a Unix socket
  std::string name;
};

std::string name_of(const asio::ip::tcp::endpoint& endpoint) {
  const bool six = endpoint.address().is_v6();
  return fmt::format("{}{}{}:{}", six ? "[" : "", endpoint.address().to_string(), six ? "]" : "",
                     endpoint.port());
}

Peer peer_of(const asio::ip::tcp::socket& socket) {
  error_code error;
  const auto endpoint = socket.remote_endpoint(error);
  if (error) return {"unknown", "unknown"};  // it has left already
  return {endpoint.address().to_string(), name_of(endpoint)};
}

Peer peer_of(const asio::local::stream_protocol::socket&) { return {{}, "unix"}; }

void prepare(asio::ip::tcp::socket& socket) {
  error_code ignored;
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);  // tokens should not wait
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
}

void prepare(asio::local::stream_protocol::socket&) {}

// A socket file that nobody listens on any more; a live one, or another file, is left alone.
void remove_stale_socket(const std::string& path, asio::io_context& context) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return;
  asio::local::stream_protocol::socket probe(context);
  error_code error;
  probe.connect(path, error);
  if (error == asio::error::connection_refused) unlink(path.c_str());
}

}  // namespace

Listener::Listener(const HttpListener& what, Network& network,
                   const std::vector<std::unique_ptr<NetworkThread>>& threads)
    : network_(network),
      threads_(threads),
      acceptor_(Tcp::acceptor(threads.front()->context)),
      pause_(threads.front()->context) {
  if (what.certificate.empty() != what.key.empty()) {
    throw Error(ErrorKind::kUsage, "TLS needs a certificate and its key, got one of them");
  }
  if (!what.certificate.empty()) tls_ = load_tls_context(what.certificate, what.key);
  if (what.unix_path.empty()) {
    listen_tcp(what);
  } else {
    listen_unix(what.unix_path);
  }
}

Listener::~Listener() { close(); }

void Listener::listen_tcp(const HttpListener& what) {
  asio::io_context& context = threads_.front()->context;
  const std::string where = fmt::format("{}:{}", what.host, what.port);
  error_code error;
  Tcp::resolver resolver(context);
  const auto found =
      resolver.resolve(what.host, std::to_string(what.port),
                       Tcp::resolver::passive | Tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    throw_error(ErrorKind::kNotFound, "{}: expected an address to listen on: {}",
                printable(what.host), error.message());
  }
  const Tcp::endpoint wanted = found.begin()->endpoint();
  auto& acceptor = std::get<Tcp::acceptor>(acceptor_);
  acceptor.open(wanted.protocol(), error);
  if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  // "::" means everybody, with IPv4 too.
  if (!error && wanted.protocol() == Tcp::v6())
    acceptor.set_option(asio::ip::v6_only(false), error);
  if (!error) acceptor.bind(wanted, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) fail("listening on", where, error);
  const Tcp::endpoint endpoint = acceptor.local_endpoint();
  port_ = endpoint.port();
  address_ = fmt::format("{}://{}", tls_ ? "https" : "http", name_of(endpoint));
}

void Listener::listen_unix(const std::string& path) {
  asio::io_context& context = threads_.front()->context;
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    throw_error(ErrorKind::kUsage, "{}: the path of a Unix socket has at most {} bytes, got {}",
                path, sizeof(sockaddr_un::sun_path) - 1, path.size());
  }
  remove_stale_socket(path, context);
  auto& acceptor = acceptor_.emplace<Local::acceptor>(context);
  error_code error;
  acceptor.open(Local(), error);
  if (!error) acceptor.bind(Local::endpoint(path), error);
  if (error) fail("listening on", path, error);
  unix_path_ = path;
  // Nobody can connect before listen(), so that nobody slips in before this.
  if (chmod(path.c_str(), S_IRUSR | S_IWUSR) != 0) throw_errno("protecting", path, errno);
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) fail("listening on", path, error);
  address_ = "unix:" + path;
}

void Listener::start() {
  std::visit(
      [this](auto& acceptor) {
        asio::co_spawn(
            threads_.front()->context, [this, &acceptor] { return accept(acceptor); },
            asio::detached);
      },
      acceptor_);
}

void Listener::close() {
  std::visit(
      [](auto& acceptor) {
        error_code ignored;
        acceptor.close(ignored);
      },
      acceptor_);
  pause_.cancel();
  if (!unix_path_.empty()) unlink(std::exchange(unix_path_, {}).c_str());
}

template <typename Protocol>
asio::awaitable<void> Listener::accept(asio::basic_socket_acceptor<Protocol>& acceptor) {
  while (acceptor.is_open()) {
    NetworkThread& thread = *threads_[next_thread_++ % threads_.size()];
    asio::basic_stream_socket<Protocol> socket(thread.context);
    auto [error] = co_await acceptor.async_accept(socket, kTuple);
    if (!acceptor.is_open()) break;
    try {
      if (!error) take(std::move(socket), thread);
    } catch (...) {
      error = asio::error::no_memory;
    }
    if (!error || belongs_to_one_client(error)) continue;
    ++network_.accept_errors;
    pause_.expires_after(kPauseAfterError);
    co_await pause_.async_wait(kTuple);
  }
}

template <typename Protocol>
void Listener::take(asio::basic_stream_socket<Protocol> socket, NetworkThread& thread) {
  const Peer peer = peer_of(socket);
  int status = 0;
  std::optional<Refusal> refusal;
  std::shared_ptr<void> seat = network_.enter(peer.address, status);
  if (!seat) {
    seat = network_.enter_refused();
    // A handshake is too dear for somebody who cannot be served.
    if (!seat || tls_) return;
    refusal = Refusal{status, status == 429 ? "too many connections from this address"
                                            : "the server has too many connections"};
  }
  prepare(socket);
  auto connection =
      std::make_shared<Connection>(network_, thread, Connection::Socket(std::move(socket)),
                                   tls_.get(), std::move(seat), peer.name, std::move(refusal));
  asio::dispatch(thread.context, [connection = std::move(connection)] { connection->start(); });
}

}  // namespace drover
