#include "server/http/server_sent_events.h"

namespace drover {
namespace {

// One "field: line" for each line of the text. All three line ends of the format end a line, so
// that no text can start a field of its own.
void append_field(std::string& out, std::string_view field, std::string_view text) {
  for (;;) {
    const size_t length = std::min(text.find_first_of("\r\n"), text.size());
    out += field;
    out += ": ";
    out += text.substr(0, length);
    out += '\n';
    if (length == text.size()) return;
    text.remove_prefix(length + (text.substr(length).starts_with("\r\n") ? 2 : 1));
  }
}

}  // namespace

std::string sse_event(std::string_view name, std::string_view data) {
  std::string out;
  out.reserve(name.size() + data.size() + 24);
  if (!name.empty()) append_field(out, "event", name);
  append_field(out, "data", data);
  out += '\n';
  return out;
}

std::string sse_comment(std::string_view text) {
  std::string out;
  append_field(out, "", text);
  out += '\n';
  return out;
}

EventStream::EventStream(HttpReply reply, int status, HttpHeaders headers,
                         std::chrono::milliseconds silence)
    : reply_(std::move(reply)) {
  headers.emplace_back("Content-Type", "text/event-stream; charset=utf-8");
  headers.emplace_back("Cache-Control", "no-cache");
  headers.emplace_back("X-Accel-Buffering", "no");  // nginx in front would hold events back
  reply_.begin(status, std::move(headers));
  if (silence.count() > 0) reply_.when_silent(silence, sse_comment("still here"));
}

}  // namespace drover
