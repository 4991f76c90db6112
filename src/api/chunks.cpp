#include "api/chunks.h"

#include <utility>

#include "text/utf8.h"

namespace drover {

namespace json = boost::json;

ChunkStream::ChunkStream(const ApiRequest& request, const Tokenizer& tokenizer, ApiName name,
                         Emit emit)
    : request_(request), tokenizer_(tokenizer), name_(std::move(name)), emit_(std::move(emit)) {
  for (const Request& one : request.requests) {
    for (int64_t sample = 0; sample < one.samples; ++sample) {
      choices_.push_back(
          {.chat = {}, .completion = {tokenizer, one.options.show_special}, .calls = {}});
      if (request.tools.empty()) continue;
      choices_.back().calls.emplace(
          ToolCallOptions{.names = request.tools, .max_calls = request.most_calls});
    }
  }
}

size_t ChunkStream::index(size_t prompt, int64_t sample) const {
  return prompt * static_cast<size_t>(request_.requests[0].samples) + static_cast<size_t>(sample);
}

void ChunkStream::begin() {
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (is_chat()) {
      emit(i, json::object{{"role", "assistant"}, {"content", ""}}, nullptr, nullptr);
    }
  }
  for (size_t prompt = 0; request_.echo && prompt < request_.requests.size(); ++prompt) {
    const Request& asked = request_.requests[prompt];
    // With log-probabilities it comes when they are known.
    if (asked.options.prompt_logprobs) continue;
    const std::string echo = echo_of(asked, tokenizer_);
    for (int64_t sample = 0; sample < asked.samples; ++sample) say(index(prompt, sample), echo);
  }
}

void ChunkStream::prompt_logprobs(size_t prompt, std::span<const ChoiceLogprobs> logprobs) {
  const Request& asked = request_.requests[prompt];
  const std::string echo = echo_of(asked, tokenizer_);
  for (int64_t sample = 0; sample < asked.samples; ++sample) {
    const size_t i = index(prompt, sample);
    add_prompt(asked, logprobs, choices_[i].completion);
    say(i, echo);
  }
}

void ChunkStream::token(size_t prompt, const DrawnToken& token) {
  if (token.logprobs == nullptr) return;
  Choice& choice = choices_[index(prompt, token.sample)];
  if (!is_chat()) {
    choice.completion.add(*token.logprobs);
  } else if (!token.stop) {
    choice.chat.push_back(*token.logprobs);
  }
}

void ChunkStream::text(size_t prompt, int64_t sample, std::string_view piece) {
  const size_t choice = index(prompt, sample);
  const std::string text = as_utf8(piece);
  if (choices_[choice].calls) return hear(choice, choices_[choice].calls->push(text));
  say(choice, text);
}

void ChunkStream::done(size_t prompt, std::span<const Answer> answers) {
  for (size_t sample = 0; sample < answers.size(); ++sample) {
    const size_t i = index(prompt, static_cast<int64_t>(sample));
    if (choices_[i].calls) hear(i, choices_[i].calls->finish());
    // Of tokens that have shown no text.
    if (!choices_[i].chat.empty() || !choices_[i].completion.empty()) say(i, "");
    emit(i, is_chat() ? json::value(json::object()) : json::value(""), nullptr,
         json::value(api_finish(answers[sample].finish, choices_[i].called)));
  }
  usage_.add(answers);
  if (++prompts_done_ < request_.requests.size()) return;
  if (request_.include_usage) {
    json::object last = chunk({});
    last["usage"] = usage_.json();
    emit_("", json::serialize(last));
  }
  emit_("", "[DONE]");
}

void ChunkStream::fail(const ApiError& error) {
  emit_("", json::serialize(error_body(error, ApiDialect::kOpenAi)));
}

void ChunkStream::say(size_t choice, std::string_view piece) {
  json::value delta(piece);
  if (is_chat()) delta = json::object{{"content", piece}};
  emit(choice, std::move(delta), take_logprobs(choices_[choice]), nullptr);
}

// A call's first delta has its name, the others pieces of its arguments (clients put together what
// has one index).
void ChunkStream::hear(size_t choice, const std::vector<ToolEvent>& events) {
  const auto call = [&](json::object delta) {
    emit(choice, json::object{{"tool_calls", json::array{std::move(delta)}}},
         take_logprobs(choices_[choice]), nullptr);
  };
  for (const ToolEvent& event : events) {
    switch (event.kind) {
      case ToolEvent::Kind::kText:
        say(choice, event.text);
        break;
      case ToolEvent::Kind::kCallBegin:
        call({{"index", event.index},
              {"id", tool_call_id(name_, choice, event.index)},
              {"type", "function"},
              {"function", {{"name", event.text}, {"arguments", ""}}}});
        break;
      case ToolEvent::Kind::kArguments:
        call({{"index", event.index}, {"function", {{"arguments", event.text}}}});
        break;
      case ToolEvent::Kind::kCallEnd:
        choices_[choice].called = choices_[choice].called || event.whole;
        break;
    }
  }
}

json::value ChunkStream::take_logprobs(Choice& choice) {
  if (!request_.requests[0].options.logprobs) return nullptr;
  if (is_chat()) return chat_logprobs(tokenizer_, std::exchange(choice.chat, {}));
  return choice.completion.take();
}

void ChunkStream::emit(size_t choice, json::value delta, json::value logprobs, json::value finish) {
  const json::object one{{"index", choice},
                         {is_chat() ? "delta" : "text", std::move(delta)},
                         {"logprobs", std::move(logprobs)},
                         {"finish_reason", std::move(finish)}};
  emit_("", json::serialize(chunk({one})));
}

json::object ChunkStream::chunk(json::array choices) const {
  json::object out{{"id", name_.id},
                   {"object", is_chat() ? "chat.completion.chunk" : "text_completion"},
                   {"created", name_.created},
                   {"model", name_.model},
                   {"choices", std::move(choices)}};
  if (request_.include_usage) out["usage"] = nullptr;
  return out;
}

}  // namespace drover
