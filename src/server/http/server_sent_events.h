// Server-sent events: the text of events, and a stream of them on an HttpReply. The stream's
// functions are thread-safe as the reply's are; each event travels whole or not at all.
// Source: WHATWG HTML, "Server-sent events", section "Parsing an event stream".
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "server/http/http_reply.h"

namespace drover {

// "event: NAME", "data: ..." for each line of `data`, and an empty line. Without a name, data
// alone, as OpenAI's chat streams; Anthropic's and the Responses API's events have names.
std::string sse_event(std::string_view name, std::string_view data);
inline std::string sse_data(std::string_view data) { return sse_event({}, data); }
// A line that every client skips.
std::string sse_comment(std::string_view text);

class EventStream {
 public:
  // Begins the answer. While nothing else comes for `silence`, a comment goes out, so that neither
  // client nor proxy gives up during a long prefill; 0: never.
  EventStream(HttpReply reply, int status = 200, HttpHeaders headers = {},
              std::chrono::milliseconds silence = std::chrono::seconds(10));

  // These return false, and do nothing, when the client is gone or too far behind.
  bool data(std::string_view text) { return reply_.write(sse_data(text)); }
  bool event(std::string_view name, std::string_view text) {
    return reply_.write(sse_event(name, text));
  }
  bool comment(std::string_view text) { return reply_.write(sse_comment(text)); }
  // The end of OpenAI's streams, and of the answer.
  bool done() { return data("[DONE]") && end(); }
  bool end() { return reply_.end(); }

  bool closed() const { return reply_.closed(); }
  void on_closed(std::function<void()> callback) { reply_.on_closed(std::move(callback)); }

 private:
  HttpReply reply_;
};

}  // namespace drover
