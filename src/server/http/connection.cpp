#include "server/http/connection.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <utility>

#include "server/http/growing_body.h"

namespace drover {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// Small, since every idle connection holds one; large for bodies, where it saves system calls.
constexpr size_t kIdleBuffer = 4 * 1024;
constexpr size_t kBodyBuffer = 64 * 1024;
// How much of the following requests is read while one is answered.
constexpr size_t kReadAhead = 16 * 1024;
// The write limit's unit: a slower client is cut.
constexpr size_t kWritePiece = 64 * 1024;
// After our last byte, how long we wait for the client to close. Closing with unread bytes would
// reset the connection, and the client might lose the answer.
constexpr std::chrono::seconds kLinger{1};
constexpr std::chrono::hours kForever{24};

Refusal refusal_for(const error_code& error) {
  if (error == http::error::body_limit) return {413, "the body is too large"};
  if (error == http::error::header_limit) return {431, "the headers are too long"};
  if (error == http::error::bad_version) return {400, "the version of HTTP is none of 1.0 and 1.1"};
  if (error == http::error::bad_content_length || error == http::error::multiple_content_length) {
    return {400, "Content-Length is not one number"};
  }
  if (error == http::error::bad_transfer_encoding) return {400, "Transfer-Encoding is malformed"};
  if (error == http::error::bad_chunk || error == http::error::bad_chunk_extension) {
    return {400, "a chunk of the body is malformed"};
  }
  return {400, "the request is malformed"};
}

}  // namespace

// While it lives, a request is being answered; then the exchange is closed and logged.
class Connection::Answering {
 public:
  Answering(Connection& connection, std::shared_ptr<Exchange> exchange, const Incoming& incoming)
      : connection_(connection), start_(incoming.start) {
    const HttpRequest& request = incoming.head.request;
    access_.method = request.method;
    access_.path = request.path;
    access_.peer = connection.peer_;
    access_.id = request.id;
    connection_.exchange_ = std::move(exchange);
    ++connection_.network_.requests_open;
  }
  ~Answering() {
    const auto exchange = std::exchange(connection_.exchange_, nullptr);
    exchange->close();
    Network& network = connection_.network_;
    --network.requests_open;
    access_.status = exchange->status();
    access_.bytes = exchange->body_bytes();
    access_.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    network.count_answer(access_.status);
    network.log(access_);
  }
  Answering(const Answering&) = delete;
  Answering& operator=(const Answering&) = delete;

  void complete() { access_.complete = true; }

 private:
  Connection& connection_;
  Clock::time_point start_;
  HttpAccess access_;
};

Connection::Connection(Network& network, NetworkThread& thread, Socket socket,
                       asio::ssl::context* tls, std::shared_ptr<void> seat, std::string peer,
                       std::optional<Refusal> refusal)
    : seat_(std::move(seat)),
      network_(network),
      thread_(thread),
      socket_(std::move(socket)),
      timer_(thread.context),
      peer_(std::move(peer)),
      refusal_(std::move(refusal)) {
  if (tls) tls_ = std::make_unique<asio::ssl::stream<Socket&>>(socket_, *tls);
}

Connection::~Connection() { network_.bodies_bytes -= charged_; }

void Connection::start() {
  if (network_.stopping) return;
  thread_.connections.insert(this);
  asio::co_spawn(
      thread_.context, [self = shared_from_this()] { return self->run(); },
      [self = shared_from_this()](const std::exception_ptr&) {
        self->abort();
        self->thread_.connections.erase(self.get());
      });
}

Connection::Awaitable<void> Connection::run() {
  try {
    if (tls_) co_await shake_hands();
    while (co_await serve_one()) served_ = true;
    co_await close_gently();
  } catch (const Gone&) {
    // The usual end.
  }
}

Connection::Awaitable<void> Connection::shake_hands() {
  guard(network_.options.limits.header_time);
  const auto [error] = co_await tls_->async_handshake(asio::ssl::stream_base::server, kTuple);
  timer_.cancel();
  if (error) throw Gone{};
}

// Whether another request may follow.
Connection::Awaitable<bool> Connection::serve_one() {
  Incoming incoming;
  std::optional<Refusal> refusal = std::exchange(refusal_, std::nullopt);
  if (!refusal) {
    try {
      co_await read_request(incoming);
    } catch (Refusal& thrown) {
      refusal = std::move(thrown);
    }
    charge_body(0);
    if (in_.empty()) std::string().swap(in_);  // after a body it may be large
  }
  RequestHead& head = incoming.head;
  if (head.request.method.empty()) incoming.start = Clock::now();  // the head itself was refused
  if (head.request.id.empty()) head.request.id = network_.new_id();
  if (refusal) {
    incoming.unwanted = network_.refusal(refusal->status, refusal->message, head.request);
  }
  if (incoming.unwanted) head.keep_alive = false;
  const auto exchange = make_exchange(head);
  Answering answering(*this, exchange, incoming);
  // What is left of the request once the handler has it.
  HttpRequest known;
  known.path = head.request.path;
  known.id = head.request.id;
  if (incoming.unwanted) {
    exchange->send(std::move(*incoming.unwanted));
  } else {
    try {
      network_.handler(std::move(head.request), HttpReply(exchange));
    } catch (...) {
      ++network_.handler_errors;  // the reply, dropped on the way, sends 500
    }
  }
  const bool keep_alive = co_await answer(exchange, known);
  answering.complete();
  co_return keep_alive;
}

std::shared_ptr<Exchange> Connection::make_exchange(const RequestHead& head) {
  AnswerForm form;
  form.head_only = head.request.method == "HEAD";
  form.http_1_0 = head.http_1_0;
  form.keep_alive = head.keep_alive;
  form.request_id = head.request.id;
  // Called by whoever answers. The exchange forgets it before the connection ends, so the context
  // is there; only its thread may come to own the connection.
  auto wake = [weak = weak_from_this(), executor = thread_.context.get_executor()] {
    asio::post(executor, [weak] {
      if (const auto self = weak.lock()) self->notify();
    });
  };
  return std::make_shared<Exchange>(std::move(form), network_.options.limits.unsent_bytes,
                                    std::move(wake));
}

// The length of the head that in_ starts with, once it is whole.
Connection::Awaitable<size_t> Connection::read_head_bytes() {
  const HttpLimits& limits = network_.options.limits;
  HeadScanner scanner(limits);
  Clock::time_point deadline = Clock::now() + (served_ ? limits.idle_time : limits.header_time);
  bool begun = false, skipped = false;
  for (;;) {
    if (!in_.empty() && !begun) {
      begun = true;
      deadline = Clock::now() + limits.header_time;
    }
    const size_t length = scanner.scan(in_);
    if (length == 2 && !skipped) {  // some old clients end a body with an empty line of their own
      skipped = true;
      in_.erase(0, length);
      scanner = HeadScanner(limits);
      continue;
    }
    if (length > 0) co_return length;
    if (in_.empty() && network_.draining) throw Gone{};
    listen(kIdleBuffer);
    co_await more(deadline, in_.empty() ? nullptr : "the headers took too long");
  }
}

Connection::Awaitable<void> Connection::read_request(Incoming& incoming) {
  const HttpLimits& limits = network_.options.limits;
  const size_t length = co_await read_head_bytes();
  incoming.start = Clock::now();

  const auto parser = std::make_unique<http::request_parser<GrowingBody>>();
  parser->header_limit(static_cast<uint32_t>(std::min(limits.header_bytes, size_t{1} << 30)) + 1);
  parser->body_limit(limits.body_bytes);
  error_code error;
  in_.erase(0, parser->put(asio::buffer(in_.data(), length), error));
  // The length is judged below, when it is known that it can be trusted.
  if (error && error != http::error::body_limit) throw refusal_for(error);
  RequestHead& head = incoming.head;
  head = check_head(parser->get().base(), !error && parser->keep_alive(), limits);
  head.request.peer = peer_;
  head.request.tls = tls_ != nullptr;
  if (head.request.id.empty()) head.request.id = network_.new_id();
  if (error) throw refusal_for(error);
  if (network_.options.admit) {
    try {
      incoming.unwanted = network_.options.admit(head.request);
    } catch (...) {
      ++network_.handler_errors;
      throw Refusal{500, "the server failed"};
    }
    if (incoming.unwanted) co_return;
  }

  const Clock::time_point deadline = incoming.start + limits.body_time;
  parser->eager(true);
  if (!parser->is_done() && head.expects_continue && in_.empty()) {
    co_await write("HTTP/1.1 100 Continue\r\n\r\n");
  }
  while (!parser->is_done()) {
    error = {};
    if (!in_.empty()) in_.erase(0, parser->put(asio::buffer(in_), error));
    if (error && error != http::error::need_more) throw refusal_for(error);
    charge_body(parser->get().body().size());
    if (parser->is_done()) break;
    // What the parser leaves is the begin of a chunk's size line, or of the trailer.
    if (in_.size() > limits.header_bytes) throw Refusal{400, "a chunk of the body is malformed"};
    listen(kBodyBuffer);
    co_await more(deadline, "the body took too long");
  }
  head.request.body = std::move(parser->get().body());
}

void Connection::charge_body(size_t bytes) {
  const size_t before = std::exchange(charged_, bytes);
  const size_t all = network_.bodies_bytes += bytes - before;
  if (bytes > before && all > network_.options.limits.all_bodies_bytes) {
    throw Refusal{503, "too many bodies are being received"};
  }
}

// Sends what comes from the exchange until its end. Whether another request may follow.
Connection::Awaitable<bool> Connection::answer(std::shared_ptr<Exchange> exchange,
                                               const HttpRequest& request) {
  Clock::time_point last_write = Clock::now();
  for (;;) {
    const Exchange::Output output = exchange->take(/*keep_alive=*/!network_.draining);
    if (output.unanswered) {
      exchange->send(network_.refusal(500, "the server failed", request));
      continue;
    }
    if (output.cut) throw Gone{};
    if (!output.bytes.empty()) {
      co_await write(output.bytes);
      last_write = Clock::now();
    }
    if (output.last) co_return exchange->keeps_alive();
    if (!output.bytes.empty()) continue;
    if (gone_) throw Gone{};
    if (in_.size() < kReadAhead) listen(kIdleBuffer);
    Clock::time_point until = Clock::now() + kForever;
    if (output.silence.count() > 0) {
      until = last_write + output.silence;
      if (Clock::now() >= until) {
        exchange->put_silence();
        last_write = Clock::now();
        continue;
      }
    }
    co_await doze(until);
  }
}

Connection::Awaitable<void> Connection::close_gently() {
  guard(kLinger);
  if (tls_) co_await tls_->async_shutdown(kTuple);
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  std::array<char, 1024> waste;
  for (bool open = !gone_; open;) {
    const auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(waste), kTuple);
    open = !error;
  }
  timer_.cancel();
}

Connection::Awaitable<void> Connection::more(Clock::time_point deadline, const char* late) {
  if (gone_) throw Gone{};
  if (Clock::now() >= deadline) {
    if (late) throw Refusal{408, late};
    throw Gone{};
  }
  co_await doze(deadline);
}

Connection::Awaitable<void> Connection::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const asio::const_buffer piece(bytes.data(), std::min(bytes.size(), kWritePiece));
    guard(network_.options.limits.write_time);
    std::tuple<error_code, size_t> result;
    if (tls_) {
      result = co_await asio::async_write(*tls_, piece, kTuple);
    } else {
      result = co_await asio::async_write(socket_, piece, kTuple);
    }
    timer_.cancel();
    if (std::get<0>(result)) throw Gone{};
    network_.bytes_out += piece.size();
    bytes.remove_prefix(piece.size());
  }
}

Connection::Awaitable<void> Connection::doze(Clock::time_point until) {
  timer_.expires_at(until);
  dozing_ = true;
  co_await timer_.async_wait(kTuple);
  dozing_ = false;
}

void Connection::notify() {
  // The coroutine may be waiting for a client that does not read.
  if (exchange_ && exchange_->over_limit()) abort();
  if (dozing_) timer_.cancel();
}

void Connection::listen(size_t bytes) {
  if (reading_ || gone_) return;
  if (buffer_.size() != bytes) {
    std::vector<char>(bytes).swap(buffer_);
  }
  reading_ = true;
  auto done = [self = shared_from_this()](const error_code& error, size_t read) {
    self->on_read(error, read);
  };
  if (tls_) {
    tls_->async_read_some(asio::buffer(buffer_), std::move(done));
  } else {
    socket_.async_read_some(asio::buffer(buffer_), std::move(done));
  }
}

void Connection::on_read(const error_code& error, size_t bytes) noexcept {
  reading_ = false;
  try {
    in_.append(buffer_.data(), bytes);
    network_.bytes_in += bytes;
    if (error) gone_ = true;
    notify();
  } catch (...) {
    abort();  // no memory
  }
}

void Connection::guard(std::chrono::milliseconds time) {
  timer_.expires_after(time);
  timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (!error) self->abort();
  });
}

void Connection::drain() { notify(); }

void Connection::abort() {
  gone_ = true;
  error_code ignored;
  socket_.close(ignored);
  if (dozing_) timer_.cancel();
}

}  // namespace drover
