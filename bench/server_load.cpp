// Many clients of a server in one thread: what script/check-server and script/measure-server hurt
// and measure `drover serve` with. Of the server's code it uses nothing but the same Asio.
//
//   server_load --port 8080 --bodies FILE --clients 16 --seconds 10
//
// FILE has one request body on each line; clients take the next line in turn, from the beginning
// again where there are too few. Prints one JSON object: how requests ended, tokens, and times in
// milliseconds.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using Tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// What a client is like.
enum class Manner {
  kSteady,      // asks, reads the answer to its end, asks again
  kLeave,       // goes at some moment: in the head, in the body, while it waits, in the answer
  kHold,        // keeps its stream open to the end
  kSlowHead,    // sends a byte of the head each second
  kSlowBody,    // the same of the body
  kSlowReader,  // reads a byte of the answer each second
};

struct Flags {
  uint16_t port = 0;
  std::string path = "/v1/completions", bodies;
  int clients = 16;
  int64_t requests = 0;
  double seconds = 0, warm = 0, pause = 0, patience = 300;
  Manner manner = Manner::kSteady;
  bool reconnect = false;
  uint64_t seed = 1;
};

double milliseconds(Clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}
Clock::duration duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  json::object summary() {
    if (values_.empty()) return {{"count", 0}};
    std::sort(values_.begin(), values_.end());
    const auto at = [&](double part) {
      return values_[static_cast<size_t>(part * static_cast<double>(values_.size() - 1) + 0.5)];
    };
    return {{"count", values_.size()},
            {"p50", at(0.5)},
            {"p95", at(0.95)},
            {"p99", at(0.99)},
            {"max", at(1.0)}};
  }

 private:
  std::vector<double> values_;
};

// The text that a stream's event brings; found without parsing, since this must cost next to
// nothing.
bool has_text(std::string_view event) {
  for (const std::string_view key : {"\"content\":\"", "\"text\":\""}) {
    const size_t at = event.find(key);
    if (at != std::string_view::npos && event.substr(at + key.size(), 1) != "\"") return true;
  }
  return false;
}

// The number after a key, or 0.
int64_t number_after(std::string_view text, std::string_view key) {
  const size_t at = text.find(key);
  if (at == std::string_view::npos) return 0;
  const char* from = text.data() + at + key.size();
  while (from < text.data() + text.size() && *from == ' ') ++from;
  int64_t number = 0;
  std::from_chars(from, text.data() + text.size(), number);
  return number;
}

// All clients together.
class Load {
 public:
  explicit Load(Flags flags) : flags_(std::move(flags)) {
    std::ifstream file(flags_.bodies, std::ios::binary);
    for (std::string line; std::getline(file, line);) bodies_.push_back(std::move(line));
    if (bodies_.empty()) throw std::runtime_error(flags_.bodies + ": expected request bodies");
  }

  const Flags& flags() const { return flags_; }
  asio::io_context& context() { return context_; }

  bool over() const {
    return (flags_.requests > 0 && asked_ >= flags_.requests) ||
           (flags_.seconds > 0 && Clock::now() - begin_ > duration(flags_.seconds));
  }
  Clock::time_point end_time() const { return begin_ + duration(flags_.seconds); }
  const std::string& next_body() { return bodies_[static_cast<size_t>(asked_++) % bodies_.size()]; }

  void ended(const std::string& how, int status) {
    ++ends_[how];
    if (status > 0) ++statuses_[std::to_string(status)];
    last_ = Clock::now();
  }
  // A token, or what comes as one: only those after the warming up are counted.
  void token() {
    const auto now = Clock::now() - begin_;
    const bool late = flags_.seconds > 0 && now > duration(flags_.seconds);
    if (now >= duration(flags_.warm) && !late) ++tokens_;
  }
  void used(int64_t tokens) { usage_ += tokens; }
  void comment() { ++comments_; }
  // From the last byte of a request to the first of its answer, by status.
  std::map<std::string, Samples> head;
  Samples first, between, whole;  // of streams: to the first text, between texts, to the end

  json::object run();

 private:
  Flags flags_;
  asio::io_context context_{1};
  std::vector<std::string> bodies_;
  Clock::time_point begin_, last_;
  int64_t asked_ = 0, tokens_ = 0, usage_ = 0, comments_ = 0;
  std::map<std::string, int64_t> ends_, statuses_;
};

// What an await gives is named before it is asked about: as GCC 12 compiles `if (!co_await ...)`,
// some of these coroutines went on in the wrong place.
class Client {
 public:
  Client(Load& load, int number)
      : load_(load),
        random_(load.flags().seed * 1'000'003 + static_cast<uint64_t>(number)),
        socket_(load.context()),
        patience_(load.context()),
        pause_(load.context()) {}

  asio::awaitable<void> run() {
    while (!load_.over()) {
      if (!socket_.is_open()) co_await connect();
      if (!socket_.is_open()) {
        load_.ended("unreachable", 0);
        co_return;  // there is no server any more
      }
      const std::string& body = load_.next_body();
      const std::string how = co_await ask(body);
      load_.ended(how, status_);
      const bool stays = how == "done" || how == "whole" || how == "refused";
      if (!stays || load_.flags().reconnect) drop();
      if (status_ == 429 && load_.flags().pause > 0) co_await sleep(load_.flags().pause);
    }
    drop();
  }

 private:
  enum class State { kOpen, kDone, kError };

  asio::awaitable<void> connect() {
    in_.clear();
    error_code error;
    socket_.open(Tcp::v4(), error);
    // Else the system's own buffers read ahead of the slow reader.
    if (load_.flags().manner == Manner::kSlowReader) {
      socket_.set_option(asio::socket_base::receive_buffer_size(2048), error);
    }
    const Tcp::endpoint server(asio::ip::address_v4::loopback(), load_.flags().port);
    const auto [failed] = co_await socket_.async_connect(server, kTuple);
    if (failed) drop();
    if (!failed) socket_.set_option(Tcp::no_delay(true), error);
  }

  void drop(bool reset = false) {
    error_code ignored;
    if (reset) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
    socket_.close(ignored);
  }

  asio::awaitable<void> sleep(double seconds) {
    pause_.expires_after(duration(seconds));
    co_await pause_.async_wait(kTuple);
  }

  double chance() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  // One request and its answer; how it ended:
  //   done         a stream that said why it ended, and [DONE]
  //   whole        an answer without a stream, 200
  //   error        a stream with an error event
  //   refused      another status than 200
  //   cut          an answer that ended before its end
  //   unanswered   a connection that was closed before a byte of the answer
  //   hung         nothing came for so long that the client gave up
  //   left, held   the client's own doing
  asio::awaitable<std::string> ask(const std::string& body) {
    const Flags& flags = load_.flags();
    status_ = 0;
    hung_ = false;
    patience_.expires_after(duration(flags.patience));
    patience_.async_wait([this](const error_code& error) {
      if (error) return;
      hung_ = true;
      drop();
    });
    const std::string head = "POST " + flags.path +
                             " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                             "Content-Length: " +
                             std::to_string(body.size()) + "\r\n\r\n";
    start_ = Clock::now();
    std::string how;
    if (flags.manner == Manner::kLeave) {
      how = co_await leave(head, body);
    } else {
      how = co_await exchange(head, body);
    }
    patience_.cancel();
    co_return hung_ ? "hung" : how;
  }

  asio::awaitable<std::string> exchange(const std::string& head, const std::string& body) {
    const Manner manner = load_.flags().manner;
    const std::string all = head + body;
    if (manner == Manner::kSlowHead || manner == Manner::kSlowBody) {
      const size_t at_once = manner == Manner::kSlowHead ? 0 : head.size();
      const bool begun = co_await send(std::string_view(all).substr(0, at_once));
      bool sent = false;
      if (begun) sent = co_await trickle(std::string_view(all).substr(at_once));
      if (!sent && load_.over()) co_return "left";
    } else {
      const bool sent = co_await send(all);
      if (!sent) co_return "unanswered";
    }
    start_ = Clock::now();
    co_return co_await answer();
  }

  // Somebody who loses patience at any moment, politely or not.
  asio::awaitable<std::string> leave(const std::string& head, const std::string& body) {
    const double where = chance();
    const std::string all = head + body;
    size_t bytes = all.size();
    if (where < 0.1) {
      bytes = static_cast<size_t>(chance() * static_cast<double>(head.size()));
    } else if (where < 0.2) {
      bytes = head.size() + static_cast<size_t>(chance() * static_cast<double>(body.size()));
    }
    co_await send(std::string_view(all).substr(0, bytes));
    start_ = Clock::now();
    if (where >= 0.2 && where < 0.5) {
      co_await sleep(chance() * 0.05);
    } else if (where >= 0.5 && where < 0.9) {
      leave_after_ = 1 + static_cast<int64_t>(chance() * 20);
      const std::string how = co_await answer();
      leave_after_ = 0;
      if (how != "left") co_return how;
    }
    drop(/*reset=*/chance() < 0.5);
    co_return "left";
  }

  asio::awaitable<bool> send(std::string_view bytes) {
    const auto [error, sent] =
        co_await asio::async_write(socket_, asio::buffer(bytes.data(), bytes.size()), kTuple);
    co_return !error;
  }

  // False once the server has answered, or closed.
  asio::awaitable<bool> trickle(std::string_view bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (load_.over()) co_return false;
      const bool sent = co_await send(bytes.substr(i, 1));
      if (!sent) co_return false;
      co_await sleep(1);
      error_code error;
      if (socket_.available(error) > 0 || error) co_return false;
    }
    co_return true;
  }

  // More bytes in in_; false at the end.
  asio::awaitable<bool> more() {
    const bool slow = load_.flags().manner == Manner::kSlowReader;
    if (slow) {
      if (load_.over()) co_return false;
      co_await sleep(1);
    }
    const size_t most = slow ? 1 : buffer_.size();
    const auto [error, read] =
        co_await socket_.async_read_some(asio::buffer(buffer_.data(), most), kTuple);
    in_.append(buffer_.data(), read);
    co_return !error;
  }
  // The next line without its end; false when there is none.
  asio::awaitable<bool> line(std::string& out) {
    size_t end;
    while ((end = in_.find("\r\n")) == std::string::npos) {
      const bool there = co_await more();
      if (!there) co_return false;
    }
    out = in_.substr(0, end);
    in_.erase(0, end + 2);
    co_return true;
  }
  // The next so many bytes, which go to events_.
  asio::awaitable<bool> take(size_t count) {
    while (in_.size() < count) {
      const bool there = co_await more();
      if (!there) co_return false;
    }
    events_.append(in_, 0, count);
    in_.erase(0, count);
    co_return true;
  }

  asio::awaitable<std::string> answer() {
    const Flags& flags = load_.flags();
    std::string text;
    if (in_.empty()) co_await more();
    if (in_.empty()) co_return given_up("unanswered");
    const auto came = Clock::now();
    bool there = co_await line(text);
    if (!there) co_return given_up("cut");
    status_ = static_cast<int>(number_after(text, "HTTP/1.1 "));
    load_.head[std::to_string(status_)].add(milliseconds(came - start_));
    size_t length = 0;
    bool chunked = false, stream = false, closes = false;
    for (;;) {
      there = co_await line(text);
      if (!there) co_return given_up("cut");
      if (text.empty()) break;
      std::transform(text.begin(), text.end(), text.begin(), ::tolower);
      if (text.starts_with("content-length:")) {
        length = static_cast<size_t>(number_after(text, "content-length:"));
      }
      chunked = chunked || text.starts_with("transfer-encoding: chunked");
      stream = stream || text.starts_with("content-type: text/event-stream");
      closes = closes || text.starts_with("connection: close");
    }
    state_ = State::kOpen;
    finished_ = false;
    last_text_ = {};
    events_.clear();
    seen_events_ = 0;
    if (!chunked) {
      there = co_await take(length);
      if (!there) co_return given_up("cut");
    }
    while (chunked) {
      there = co_await line(text);
      if (!there) co_return given_up("cut");
      size_t size = 0;
      std::from_chars(text.data(), text.data() + text.size(), size, 16);
      there = co_await take(size);
      if (there) there = co_await line(text);
      if (!there) co_return given_up("cut");
      if (size == 0) break;
      if (!stream) continue;
      hear();
      if (leave_after_ > 0 && seen_events_ >= leave_after_) co_return "left";
      if (flags.manner == Manner::kHold && Clock::now() > load_.end_time()) co_return "held";
    }
    if (closes) drop();
    if (status_ != 200) co_return "refused";
    if (stream && state_ == State::kError) co_return "error";
    if (stream && (state_ != State::kDone || !finished_)) co_return "cut";
    load_.whole.add(milliseconds(Clock::now() - start_));
    if (!stream) load_.used(number_after(events_, "\"completion_tokens\":"));
    co_return stream ? "done" : "whole";
  }

  // Who gives up because the time is over is no sign of a fault.
  std::string given_up(const char* how) {
    const Manner manner = load_.flags().manner;
    if (manner == Manner::kHold && held_out_) return "held";
    return manner == Manner::kSlowReader && load_.over() ? "left" : how;
  }

  // Takes the whole events out of events_.
  void hear() {
    size_t at = 0, end;
    while ((end = events_.find("\n\n", at)) != std::string::npos) {
      event(std::string_view(events_).substr(at, end - at));
      at = end + 2;
    }
    events_.erase(0, at);
  }

  void event(std::string_view text) {
    if (text.starts_with(":")) return load_.comment();
    if (!text.starts_with("data: ")) return;
    ++seen_events_;
    text.remove_prefix(6);
    if (text == "[DONE]") {
      state_ = State::kDone;
    } else if (text.starts_with("{\"error\":")) {
      state_ = State::kError;
    } else if (has_text(text)) {
      const auto now = Clock::now();
      if (last_text_ == Clock::time_point()) {
        load_.first.add(milliseconds(now - start_));
      } else {
        load_.between.add(milliseconds(now - last_text_));
      }
      last_text_ = now;
      load_.token();
    }
    finished_ = finished_ || text.find("\"finish_reason\":\"") != std::string_view::npos;
    load_.used(number_after(text, "\"completion_tokens\":"));
  }

 public:
  // At the end of the time: streams that are held are let go.
  void let_go() {
    held_out_ = true;
    drop();
  }

 private:
  Load& load_;
  std::mt19937_64 random_;
  Tcp::socket socket_;
  asio::steady_timer patience_, pause_;
  std::array<char, 16384> buffer_;
  std::string in_, events_;
  Clock::time_point start_, last_text_;
  State state_ = State::kOpen;
  int status_ = 0;
  int64_t leave_after_ = 0, seen_events_ = 0;
  bool finished_ = false, hung_ = false, held_out_ = false;
};

json::object Load::run() {
  begin_ = last_ = Clock::now();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < flags_.clients; ++i) {
    clients.push_back(std::make_unique<Client>(*this, i));
    asio::co_spawn(context_, clients.back()->run(), [](std::exception_ptr error) {
      if (error) std::rethrow_exception(error);
    });
  }
  asio::steady_timer end(context_);
  if (flags_.manner == Manner::kHold) {
    end.expires_at(end_time());
    end.async_wait([&](const error_code&) {
      for (const auto& client : clients) client->let_go();
    });
  }
  context_.run();
  const auto counts = [](const std::map<std::string, int64_t>& from) {
    json::object out;
    for (const auto& [name, count] : from) out[name] = count;
    return out;
  };
  json::object heads;
  for (auto& [status, samples] : head) heads[status] = samples.summary();
  const double all = std::chrono::duration<double>(last_ - begin_).count();
  const double counted = (flags_.seconds > 0 ? std::min(flags_.seconds, all) : all) - flags_.warm;
  return {{"requests", asked_},
          {"seconds", all},
          {"ends", counts(ends_)},
          {"statuses", counts(statuses_)},
          {"texts", tokens_},
          {"texts_per_second", static_cast<double>(tokens_) / counted},
          {"answer_tokens", usage_},
          {"comments", comments_},
          {"head_ms", std::move(heads)},
          {"first_ms", first.summary()},
          {"between_ms", between.summary()},
          {"whole_ms", whole.summary()}};
}

int run(int argc, char** argv) {
  Flags flags;
  CLI::App app("Many clients of a server in one thread; prints how they fared as JSON");
  app.add_option("--port", flags.port, "Of the server, on this machine")->required();
  app.add_option("--path", flags.path, "What is asked")->capture_default_str();
  app.add_option("--bodies", flags.bodies, "File of request bodies, one on each line")->required();
  app.add_option("--clients", flags.clients, "At the same time")->capture_default_str();
  app.add_option("--requests", flags.requests, "In all; 0: no limit")->capture_default_str();
  app.add_option("--seconds", flags.seconds, "Then nobody asks again; 0: no limit")
      ->capture_default_str();
  app.add_option("--warm", flags.warm, "Seconds before texts are counted")->capture_default_str();
  app.add_option("--pause", flags.pause, "Seconds to wait after a 429")->capture_default_str();
  app.add_option("--patience", flags.patience, "Seconds for one request")->capture_default_str();
  app.add_option("--reconnect", flags.reconnect, "true: a connection for each request")
      ->capture_default_str();
  app.add_option("--seed", flags.seed, "Of when clients leave")->capture_default_str();
  const std::map<std::string, Manner> manners = {
      {"steady", Manner::kSteady},      {"leave", Manner::kLeave},
      {"hold", Manner::kHold},          {"slow-head", Manner::kSlowHead},
      {"slow-body", Manner::kSlowBody}, {"slow-reader", Manner::kSlowReader}};
  app.add_option("--manner", flags.manner, "Of the clients")
      ->transform(CLI::CheckedTransformer(manners));
  CLI11_PARSE(app, argc, argv);
  if (flags.requests == 0 && flags.seconds == 0) {
    throw std::runtime_error("expected --requests or --seconds");
  }
  const std::string report = json::serialize(Load(flags).run());
  std::puts(report.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  return run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "server_load: %s\n", error.what());
  return 1;
}
