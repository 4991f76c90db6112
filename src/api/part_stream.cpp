#include "api/part_stream.h"

#include <utility>

#include "text/utf8.h"

namespace drover {

namespace json = boost::json;

PartStream::PartStream(const ApiRequest& request, ApiName name, Emit emit, bool whole)
    : request_(request),
      name_(std::move(name)),
      emit_(std::move(emit)),
      calls_(
          {.names = request.tools, .stream_arguments = !whole, .max_calls = request.most_calls}) {}

void PartStream::text(size_t, int64_t, std::string_view piece) {
  hear(calls_.push(as_utf8(piece)));
}

void PartStream::done(size_t, std::span<const Answer> answers) {
  const Answer& answer = answers.front();
  hear(calls_.finish());
  if (in_text_) last_words();
  close_text(answer.finish == FinishReason::kStop);
  end(answer);
}

json::object PartStream::whole(const Answer& answer) {
  begin();
  // Without the token that stopped it, if one did.
  for (size_t i = 0; i < answer.tokens.size() && i < answer.logprobs.size(); ++i) {
    token(0, {.token = answer.tokens[i], .bytes = {}, .logprobs = &answer.logprobs[i]});
  }
  text(0, 0, answer.text);
  done(0, {&answer, 1});
  return body();
}

void PartStream::hear(const std::vector<ToolEvent>& events) {
  for (const ToolEvent& event : events) {
    switch (event.kind) {
      case ToolEvent::Kind::kText:
        if (!std::exchange(in_text_, true)) begin_text();
        say(event.text);
        break;
      case ToolEvent::Kind::kCallBegin:
        close_text(true);
        begin_call(event.index, event.text);
        break;
      case ToolEvent::Kind::kArguments:
        argue(event.text);
        break;
      case ToolEvent::Kind::kCallEnd:
        called_ = called_ || event.whole;
        end_call(event.whole);
        break;
    }
  }
}

void PartStream::close_text(bool complete) {
  if (std::exchange(in_text_, false)) end_text(complete);
}

void PartStream::emit(std::string_view name, const json::object& data) const {
  if (emit_) emit_(name, json::serialize(data));
}

}  // namespace drover
