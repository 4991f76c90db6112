#include "api/anthropic.h"

#include <utility>

#include "text/tools.h"

namespace drover {
namespace {

namespace json = boost::json;

// Tokens of the prompt that were known already are counted apart.
json::object usage_json(int64_t prompt, int64_t cached, int64_t written) {
  return {{"input_tokens", prompt - cached},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", cached},
          {"output_tokens", written}};
}

std::string_view stop_reason(const Answer& answer, bool called) {
  if (answer.finish != FinishReason::kStop) return "max_tokens";
  if (answer.stop_string) return "stop_sequence";
  return called ? "tool_use" : "end_turn";
}

}  // namespace

MessageStream::MessageStream(const ApiRequest& request, ApiName name, Emit emit, bool whole)
    : PartStream(request, std::move(name), std::move(emit), whole),
      usage_(usage_json(std::ssize(request.requests.front().prompt.tokens), 0, 0)) {}

void MessageStream::begin() {
  emit("message_start", {{"type", "message_start"}, {"message", body()}});
  emit("ping", {{"type", "ping"}});
}

void MessageStream::fail(const ApiError& error) {
  emit("error", error_body(error, ApiDialect::kAnthropic));
}

// ---- texts ----

void MessageStream::begin_text() {
  block_ = {{"type", "text"}, {"text", ""}};
  begin_block();
}

void MessageStream::say(std::string_view piece) {
  said_ += piece;
  grow({{"type", "text_delta"}, {"text", piece}});
}

void MessageStream::end_text(bool) {
  block_["text"] = said_;
  end_block();
}

// ---- calls ----

void MessageStream::begin_call(int64_t number, std::string_view tool) {
  block_ = {{"type", "tool_use"},
            {"id", fmt::format("toolu_{}_{}", stem_of(name_), number)},
            {"name", tool},
            {"input", json::object()}};
  begin_block();
}

void MessageStream::argue(std::string_view piece) {
  said_ += piece;
  grow({{"type", "input_json_delta"}, {"partial_json", piece}});
}

void MessageStream::end_call(bool complete) {
  if (complete) {
    json::value input = read_tool_arguments(said_);
    if (input.is_object()) block_["input"] = std::move(input);
  }
  end_block();
}

// ---- all of it ----

void MessageStream::end(const Answer& answer) {
  usage_ = usage_json(answer.prompt_tokens, answer.cached_tokens, std::ssize(answer.tokens));
  const std::string_view reason = stop_reason(answer, called_);
  stop_reason_ = reason;
  if (reason == "stop_sequence") stop_sequence_ = *answer.stop_string;
  emit("message_delta",
       {{"type", "message_delta"},
        {"delta", {{"stop_reason", stop_reason_}, {"stop_sequence", stop_sequence_}}},
        {"usage", usage_}});
  emit("message_stop", {{"type", "message_stop"}});
}

json::object MessageStream::body() const {
  return {{"id", name_.id},
          {"type", "message"},
          {"role", "assistant"},
          {"model", name_.model},
          {"content", content_},
          {"stop_reason", stop_reason_},
          {"stop_sequence", stop_sequence_},
          {"usage", usage_}};
}

void MessageStream::begin_block() {
  said_.clear();
  emit("content_block_start",
       {{"type", "content_block_start"}, {"index", content_.size()}, {"content_block", block_}});
}

void MessageStream::grow(json::object delta) {
  emit("content_block_delta",
       {{"type", "content_block_delta"}, {"index", content_.size()}, {"delta", std::move(delta)}});
}

void MessageStream::end_block() {
  emit("content_block_stop", {{"type", "content_block_stop"}, {"index", content_.size()}});
  content_.push_back(std::move(block_));
}

}  // namespace drover
