#include "api/request.h"

#include <algorithm>
#include <array>
#include <optional>

#include "api/anthropic.h"
#include "api/body.h"
#include "api/embeddings.h"
#include "api/messages.h"
#include "api/options.h"
#include "api/responses.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

// Fields that would change the answer and are not done. All others that are not read change
// nothing, or nothing that anybody can see here. (Those of tools: messages.cpp.)
constexpr auto kRefused = std::to_array<std::string_view>(
    {"audio", "prediction", "suffix", "web_search_options", "grammar", "guided_choice",
     "guided_grammar", "guided_json", "guided_regex", "json_schema", "min_tokens",
     "prompt_logprobs", "structured_outputs", "use_beam_search"});

// Refuses what would change the answer and is not done.
void expect_fields(const json::object& body) {
  for (const auto& [key, value] : body) {
    const std::string_view name(key.data(), key.size());
    if (asks_nothing(value)) continue;
    if (std::find(kRefused.begin(), kRefused.end(), name) != kRefused.end()) refuse_field(name);
    if (name == "modalities" && value != json::array{"text"}) refuse_field(name);
    if (name == "response_format" && (!value.is_object() || !value.get_object().contains("type") ||
                                      value.get_object().at("type") != "text")) {
      throw_error(ErrorKind::kUnsupported, "{}: expected {{\"type\": \"text\"}}", name);
    }
  }
}

// A chat says whether and how many, a completion how many.
std::optional<int64_t> read_logprobs(const JsonFields& body, ApiKind kind) {
  if (kind == ApiKind::kCompletion) {
    const auto top = body.integer("logprobs");
    return top ? std::optional(within("logprobs", *top, 0, kMostTopLogprobs)) : std::nullopt;
  }
  const int64_t top =
      within("top_logprobs", body.integer("top_logprobs").value_or(0), 0, kMostTopLogprobs);
  if (body.boolean("logprobs").value_or(false)) return top;
  if (top > 0) throw_error(ErrorKind::kUsage, "top_logprobs: expected logprobs to be true as well");
  return std::nullopt;
}

// What OpenAI's two older endpoints ask with.
Request read_openai_options(const JsonFields& body, const Model& model, ChatFormat format,
                            ApiRequest& out) {
  Request request = read_options(body, model, format, out);
  request.samples = within("n", body.integer("n").value_or(1), 1, 128);
  // The best of as many as are given is all of them.
  if (body.integer("best_of").value_or(request.samples) != request.samples) refuse_field("best_of");
  read_most_tokens(body, "max_tokens", request);
  read_most_tokens(body, "max_completion_tokens", request);
  request.options.stop = read_stops(body, "stop");
  request.options.logprobs = read_logprobs(body, out.kind);
  if (const auto stream = body.fields("stream_options")) {
    out.include_usage = stream->boolean("include_usage").value_or(false);
  }
  return request;
}

void read_chat(const JsonFields& body, const Model& model, ChatFormat format,
               const PictureSource& source, ApiRequest& out) {
  Request options = read_openai_options(body, model, format, out);
  if (!body.boolean("parallel_tool_calls").value_or(true)) out.most_calls = 1;
  ask_chat(read_messages(body, model, format, /*add_generation_prompt=*/true, source), model,
           std::move(options), out);
}

void read_completion(const JsonFields& body, const Model& model, ApiRequest& out) {
  refuse_tools(body);
  Request request = read_openai_options(body, model, ChatFormat::kNone, out);
  out.echo = body.boolean("echo").value_or(false);
  if (out.echo) request.options.prompt_logprobs = request.options.logprobs;
  for (ApiInput& input : read_inputs(body, "prompt", model)) {
    out.requests.push_back(request);
    out.requests.back().prompt.tokens = std::move(input.tokens);
  }
}

}  // namespace

std::string_view api_path(ApiKind kind) {
  switch (kind) {
    case ApiKind::kChat:
      return "chat/completions";
    case ApiKind::kCompletion:
      return "completions";
    case ApiKind::kEmbedding:
      return "embeddings";
    case ApiKind::kResponse:
      return "responses";
    case ApiKind::kMessage:
      return "messages";
  }
  return "";
}

ApiKind api_kind(std::string_view url) {
  std::string_view path = url;
  if (path.ends_with('/')) path.remove_suffix(1);
  if (path.starts_with("/v1/")) path.remove_prefix(3);
  for (const ApiKind kind : {ApiKind::kChat, ApiKind::kCompletion, ApiKind::kEmbedding,
                             ApiKind::kResponse, ApiKind::kMessage}) {
    if (path.starts_with('/') && path.substr(1) == api_path(kind)) return kind;
  }
  throw_error(ErrorKind::kUsage,
              "url: expected /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses "
              "or /v1/messages, got {}",
              printable(url));
}

ApiRequest read_api_request(ApiKind kind, const json::object& body, const Model& model,
                            ChatFormat format, const PictureSource& source) {
  ApiRequest out;
  out.kind = kind;
  reading_words_of_caller([&] {
    const JsonFields fields(body, "body");
    out.model = fields.text("model").value_or("");
    expect_fields(body);
    switch (kind) {
      case ApiKind::kChat:
        return read_chat(fields, model, format, source, out);
      case ApiKind::kCompletion:
        return read_completion(fields, model, out);
      case ApiKind::kEmbedding:
        return read_embedding(fields, model, out);
      case ApiKind::kResponse:
        return read_response_request(fields, model, format, source, out);
      case ApiKind::kMessage:
        return read_message_request(fields, model, format, source, out);
    }
  });
  return out;
}

}  // namespace drover
