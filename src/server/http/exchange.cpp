#include "server/http/exchange.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/beast/core/string.hpp>
#include <ctime>

#include "base/error.h"

namespace drover {
namespace {

// A short body travels with its head in one packet; a long one is not worth copying for that.
constexpr size_t kJoinBelow = 16 * 1024;

constexpr std::array<std::string_view, 6> kOurHeaders = {
    "Content-Length", "Transfer-Encoding", "Connection", "Date", "Server", "X-Request-Id"};

bool is_ours(std::string_view name) {
  return std::any_of(kOurHeaders.begin(), kOurHeaders.end(),
                     [&](std::string_view ours) { return boost::beast::iequals(ours, name); });
}

void append_clean(std::string& out, std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte >= 0x20 || c == '\t') && byte != 0x7f) out += c;
  }
}

bool has_no_body(int status) { return status < 200 || status == 204 || status == 304; }

}  // namespace

Exchange::Exchange(AnswerForm form, size_t unsent_limit, std::function<void()> wake)
    : form_(std::move(form)), unsent_limit_(unsent_limit), wake_(std::move(wake)) {}

void Exchange::wake_locked() {
  if (wake_pending_ || !wake_) return;
  wake_pending_ = true;
  wake_();
}

bool Exchange::send(HttpAnswer answer) {
  const std::lock_guard lock(mutex_);
  DROVER_CHECK(state_ == State::kWaiting);
  state_ = State::kEnded;
  status_ = answer.status;
  headers_ = std::move(answer.headers);
  length_ = answer.body.size();
  if (!form_.head_only && !has_no_body(status_)) out_ = std::move(answer.body);
  wake_locked();
  return alive_locked();
}

bool Exchange::begin(int status, HttpHeaders headers) {
  const std::lock_guard lock(mutex_);
  DROVER_CHECK(state_ == State::kWaiting);
  state_ = State::kStreaming;
  streamed_ = true;
  status_ = status;
  headers_ = std::move(headers);
  wake_locked();
  return alive_locked();
}

bool Exchange::write(std::string_view piece) {
  const std::lock_guard lock(mutex_);
  DROVER_CHECK(state_ == State::kStreaming);
  if (!alive_locked()) return false;
  if (piece.size() > unsent_limit_ || out_.size() + sending_ > unsent_limit_ - piece.size()) {
    over_limit_ = true;
    // A former wake may have found the connection in a write that waits for this very client.
    wake_pending_ = false;
  } else {
    put_locked(piece);
  }
  wake_locked();
  return !over_limit_;
}

// An empty chunk would be the last one.
void Exchange::put_locked(std::string_view piece) {
  if (piece.empty() || form_.head_only || has_no_body(status_)) return;
  if (form_.http_1_0) {
    out_ += piece;
  } else {
    fmt::format_to(std::back_inserter(out_), "{:x}\r\n{}\r\n", piece.size(), piece);
  }
  body_bytes_ += piece.size();
}

bool Exchange::end() {
  const std::lock_guard lock(mutex_);
  DROVER_CHECK(state_ == State::kStreaming);
  state_ = State::kEnded;
  if (!alive_locked()) return false;
  if (!form_.head_only && !form_.http_1_0 && !has_no_body(status_)) out_ += "0\r\n\r\n";
  wake_locked();
  return true;
}

void Exchange::when_silent(std::chrono::milliseconds each, std::string piece) {
  const std::lock_guard lock(mutex_);
  silence_ = each;
  silence_piece_ = std::move(piece);
  wake_locked();
}

bool Exchange::closed() const {
  const std::lock_guard lock(mutex_);
  return state_ != State::kEnded && !alive_locked();
}

void Exchange::on_closed(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!closed_ && state_ != State::kEnded) {
      on_closed_.swap(callback);
      return;  // a former callback ends here, outside of the lock
    }
    if (state_ == State::kEnded) return;
  }
  if (callback) callback();
}

size_t Exchange::unsent_bytes() const {
  const std::lock_guard lock(mutex_);
  return out_.size() + sending_;
}

void Exchange::drop() noexcept {
  const std::lock_guard lock(mutex_);
  if (state_ == State::kEnded) return;
  dropped_ = true;
  try {
    wake_locked();
  } catch (...) {
    // No memory to wake the connection: it finds out when the client leaves.
  }
}

std::string Exchange::head_locked(bool keep_alive) {
  const bool bodyless = has_no_body(status_);
  // Without chunks, only the end of the connection ends a stream.
  keeps_alive_ = keep_alive && form_.keep_alive &&
                 !(streamed_ && form_.http_1_0 && !form_.head_only && !bodyless);
  std::string head = fmt::format(
      "HTTP/1.1 {} {}\r\nServer: drover\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n"
      "X-Request-Id: {}\r\n",
      status_, reason_phrase(status_), fmt::gmtime(std::time(nullptr)), form_.request_id);
  for (const auto& [name, value] : headers_) {
    if (is_ours(name)) continue;
    append_clean(head, name);
    head += ": ";
    append_clean(head, value);
    head += "\r\n";
  }
  if (!bodyless) {
    if (!streamed_) {
      fmt::format_to(std::back_inserter(head), "Content-Length: {}\r\n", length_);
    } else if (!form_.http_1_0) {
      head += "Transfer-Encoding: chunked\r\n";
    }
  }
  if (!keeps_alive_) {
    head += "Connection: close\r\n";
  } else if (form_.http_1_0) {
    head += "Connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

Exchange::Output Exchange::take(bool keep_alive) {
  const std::lock_guard lock(mutex_);
  wake_pending_ = false;
  sending_ = 0;
  Output output;
  output.silence = state_ == State::kStreaming ? silence_ : std::chrono::milliseconds{0};
  if (!alive_locked()) {
    output.cut = true;
    return output;
  }
  if (state_ == State::kWaiting) {
    output.unanswered = dropped_;
    return output;
  }
  if (!head_taken_) {
    head_taken_ = true;
    output.bytes = head_locked(keep_alive);
    headers_ = {};
    if (!streamed_) body_bytes_ = out_.size();
    if (out_.size() < kJoinBelow) output.bytes += std::exchange(out_, {});
  } else {
    output.bytes = std::exchange(out_, {});
  }
  sending_ = output.bytes.size();
  output.last = state_ == State::kEnded && out_.empty();
  output.cut = output.bytes.empty() && dropped_ && state_ == State::kStreaming;
  return output;
}

void Exchange::put_silence() {
  const std::lock_guard lock(mutex_);
  if (state_ == State::kStreaming && out_.empty()) put_locked(silence_piece_);
}

bool Exchange::over_limit() const {
  const std::lock_guard lock(mutex_);
  return over_limit_;
}

bool Exchange::keeps_alive() const {
  const std::lock_guard lock(mutex_);
  return keeps_alive_;
}

int Exchange::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

uint64_t Exchange::body_bytes() const {
  const std::lock_guard lock(mutex_);
  return body_bytes_;
}

void Exchange::close() noexcept {
  std::function<void()> callback, wake;
  bool complete = false;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    complete = state_ == State::kEnded;
    callback.swap(on_closed_);
    wake.swap(wake_);
    std::string().swap(out_);
    sending_ = 0;
  }
  if (!callback || complete) return;
  try {
    callback();
  } catch (...) {
    // What a listener throws has nowhere to go from here.
  }
}

}  // namespace drover
