// One request and its answer, between the thread that answers (through HttpReply) and the
// connection that sends (on its network thread). Thread-safe by one short lock; calls nobody's
// callback while it is held. Internal to server/http.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include "server/http/http_message.h"

namespace drover {

// What the request says about the form of its answer.
struct AnswerForm {
  bool head_only = false;   // HEAD: the headers of a GET, and nothing after them
  bool http_1_0 = false;    // no chunks: a stream ends with its connection
  bool keep_alive = false;  // the client would like to go on
  std::string request_id;
};

class Exchange {
 public:
  // `wake` makes the connection call take() soon; it may be called under the lock, on any thread.
  Exchange(AnswerForm form, size_t unsent_limit, std::function<void()> wake);

  // The answering side; see HttpReply.
  bool send(HttpAnswer answer);
  bool begin(int status, HttpHeaders headers);
  bool write(std::string_view piece);
  bool end();
  void when_silent(std::chrono::milliseconds each, std::string piece);
  bool closed() const;
  void on_closed(std::function<void()> callback);
  size_t unsent_bytes() const;
  void drop() noexcept;  // nobody will answer any more

  // The connection's side.
  struct Output {
    std::string bytes;                     // to be sent now
    bool last = false;                     // and that is all
    bool cut = false;                      // the stream cannot be completed: close the connection
    bool unanswered = false;               // dropped before a word: the connection sends 500
    std::chrono::milliseconds silence{0};  // put_silence() after so long without bytes; 0: never
  };
  // The next bytes. What was taken before counts as sent. `keep_alive` false (the server is
  // draining) makes a head that is still to be written say that the connection closes.
  Output take(bool keep_alive);
  void put_silence();
  bool over_limit() const;
  bool keeps_alive() const;  // once the last bytes were taken
  int status() const;
  uint64_t body_bytes() const;  // of the answer, as far as taken
  // No bytes will be taken any more: all are sent, or the client is gone. Forgets `wake`, and
  // tells on_closed() unless the answer was complete.
  void close() noexcept;

 private:
  enum class State { kWaiting, kStreaming, kEnded };

  void wake_locked();
  bool alive_locked() const { return !closed_ && !over_limit_; }
  void put_locked(std::string_view piece);
  std::string head_locked(bool keep_alive);

  const AnswerForm form_;
  const size_t unsent_limit_;

  mutable std::mutex mutex_;
  std::function<void()> wake_;
  std::function<void()> on_closed_;
  bool wake_pending_ = true;  // the connection looks by itself when the handler returns
  State state_ = State::kWaiting;
  bool closed_ = false, over_limit_ = false, dropped_ = false;
  bool head_taken_ = false, streamed_ = false, keeps_alive_ = false;
  int status_ = 0;
  HttpHeaders headers_;
  uint64_t length_ = 0;  // of the body of send()
  std::string out_;      // framed, not yet taken
  size_t sending_ = 0;   // taken, not yet known to be sent
  uint64_t body_bytes_ = 0;
  std::chrono::milliseconds silence_{0};
  std::string silence_piece_;
};

}  // namespace drover
