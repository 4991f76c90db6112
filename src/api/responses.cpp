#include "api/responses.h"

#include <utility>

namespace drover {
namespace {

namespace json = boost::json;

// The only part of a message's content.
json::object part_json(std::string_view text, const json::array& logprobs) {
  return {{"type", "output_text"},
          {"text", text},
          {"annotations", json::array()},
          {"logprobs", logprobs}};
}

json::object usage_json(const Answer& answer) {
  const auto written = static_cast<int64_t>(answer.tokens.size());
  return {{"input_tokens", answer.prompt_tokens},
          {"input_tokens_details",
           {{"cached_tokens", answer.cached_tokens}, {"cache_write_tokens", 0}}},
          {"output_tokens", written},
          {"output_tokens_details", {{"reasoning_tokens", 0}}},
          {"total_tokens", answer.prompt_tokens + written}};
}

}  // namespace

ResponseStream::ResponseStream(const ApiRequest& request, const Tokenizer& tokenizer, ApiName name,
                               Emit emit, bool whole)
    : PartStream(request, std::move(name), std::move(emit), whole), tokenizer_(tokenizer) {}

void ResponseStream::begin() {
  tell_response("response.created");
  tell_response("response.in_progress");
}

void ResponseStream::token(size_t, const DrawnToken& token) {
  if (token.logprobs != nullptr && !token.stop) unsaid_.push_back(*token.logprobs);
}

void ResponseStream::fail(const ApiError& error) {
  json::object said = error_body(error, ApiDialect::kOpenAi).at("error").as_object();
  error_ = json::object{{"code", error.status == 429 ? "rate_limit_exceeded" : "server_error"},
                        {"message", said.at("message")}};
  send("error", std::move(said));  // which takes the type's place
  status_ = "failed";
  tell_response("response.failed");
}

// ---- messages ----

void ResponseStream::begin_text() {
  begin_item({{"id", fmt::format("msg_{}_{}", stem_of(name_), output_.size())},
              {"type", "message"},
              {"status", "in_progress"},
              {"role", "assistant"},
              {"content", json::array()}});
  logprobs_.clear();
  tell("response.content_part.added", {{"content_index", 0}, {"part", part_json("", {})}});
}

void ResponseStream::say(std::string_view piece) {
  json::value content = chat_logprobs(tokenizer_, std::exchange(unsaid_, {})).at("content");
  said_ += piece;
  logprobs_.insert(logprobs_.end(), content.get_array().begin(), content.get_array().end());
  tell("response.output_text.delta",
       {{"content_index", 0}, {"delta", piece}, {"logprobs", std::move(content)}});
}

// Tokens that have shown no text.
void ResponseStream::last_words() {
  if (!unsaid_.empty()) say("");
}

void ResponseStream::end_text(bool complete) {
  const json::object part = part_json(said_, logprobs_);
  tell("response.output_text.done",
       {{"content_index", 0}, {"text", said_}, {"logprobs", logprobs_}});
  tell("response.content_part.done", {{"content_index", 0}, {"part", part}});
  item_["content"] = json::array{part};
  end_item(complete);
}

// ---- calls ----

void ResponseStream::begin_call(int64_t number, std::string_view tool) {
  unsaid_.clear();  // what is part of a call has no place to be shown
  begin_item({{"id", fmt::format("fc_{}_{}", stem_of(name_), output_.size())},
              {"type", "function_call"},
              {"status", "in_progress"},
              {"call_id", tool_call_id(name_, 0, number)},
              {"name", tool},
              {"arguments", ""}});
}

void ResponseStream::argue(std::string_view piece) {
  said_ += piece;
  tell("response.function_call_arguments.delta", {{"delta", piece}});
}

void ResponseStream::end_call(bool complete) {
  unsaid_.clear();
  if (complete) {
    tell("response.function_call_arguments.done", {{"name", item_["name"]}, {"arguments", said_}});
  }
  item_["arguments"] = said_;
  end_item(complete);
}

// ---- all of it ----

void ResponseStream::end(const Answer& answer) {
  const bool complete = answer.finish == FinishReason::kStop;
  if (output_.empty()) {  // nothing was said, in a message as well
    begin_text();
    end_text(complete);
  }
  status_ = complete ? "completed" : "incomplete";
  if (!complete) incomplete_ = json::object{{"reason", "max_output_tokens"}};
  usage_ = usage_json(answer);
  tell_response(complete ? "response.completed" : "response.incomplete");
}

json::object ResponseStream::body() const {
  json::object out{{"id", name_.id},
                   {"object", "response"},
                   {"created_at", name_.created},
                   {"status", status_},
                   {"background", false},
                   {"error", error_},
                   {"incomplete_details", incomplete_},
                   {"model", name_.model},
                   {"output", output_},
                   {"previous_response_id", nullptr},
                   {"store", false},
                   {"text", {{"format", {{"type", "text"}}}}},
                   {"truncation", "disabled"},
                   {"usage", usage_}};
  for (const auto& [key, value] : request_.repeated) out[key] = value;
  return out;
}

void ResponseStream::begin_item(json::object item) {
  item_ = std::move(item);
  said_.clear();
  send("response.output_item.added", {{"output_index", output_.size()}, {"item", item_}});
}

void ResponseStream::end_item(bool complete) {
  item_["status"] = complete ? "completed" : "incomplete";
  send("response.output_item.done", {{"output_index", output_.size()}, {"item", item_}});
  output_.push_back(std::move(item_));
}

void ResponseStream::tell(std::string_view type, json::object data) {
  data["item_id"] = item_.at("id");
  data["output_index"] = output_.size();
  send(type, std::move(data));
}

void ResponseStream::tell_response(std::string_view type) { send(type, {{"response", body()}}); }

void ResponseStream::send(std::string_view type, json::object data) {
  data["type"] = type;
  data["sequence_number"] = sequence_++;
  emit(type, data);
}

}  // namespace drover
