#include "api/request.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "api/body.h"
#include "api/embeddings.h"
#include "api/messages.h"
#include "engine/advised_options.h"
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

template <typename T>
void set(T& to, const std::optional<double>& value) {
  if (value) to = static_cast<T>(*value);
}

int64_t within(std::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    throw_error(ErrorKind::kUsage, "{}: expected {} to {}, got {}", field, least, most, value);
  }
  return value;
}

std::vector<std::string> read_stops(const JsonFields& body) {
  const json::value* stop = body.find("stop");
  if (stop == nullptr) return {};
  if (stop->is_string()) return {std::string(stop->get_string())};
  const auto texts = body.texts("stop");
  std::vector<std::string> out(texts->begin(), texts->end());
  if (out.size() > 16)
    throw_error(ErrorKind::kUsage, "stop: expected at most 16, got {}", out.size());
  return out;
}

// {"TOKEN": BIAS}
std::vector<std::pair<Token, float>> read_logit_bias(const JsonFields& body, const Model& model) {
  std::vector<std::pair<Token, float>> out;
  const auto bias = body.fields("logit_bias");
  if (!bias) return out;
  for (const auto& [key, value] : bias->object()) {
    const std::string_view name(key.data(), key.size());
    Token token = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), token);
    // Written in one way alone, so that none stands there twice.
    if (error != std::errc() || fmt::to_string(token) != name || token < 0 ||
        token >= model.config().vocab) {
      throw_error(ErrorKind::kUsage, "logit_bias: expected tokens of 0 to {}, got {}",
                  model.config().vocab - 1, printable(name));
    }
    out.emplace_back(token, static_cast<float>(bias->required_number(name)));
  }
  return out;
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

// What all prompts of a request are asked with.
Request read_options(const JsonFields& body, const Model& model, ChatFormat format,
                     ApiRequest& out) {
  Request request;
  request.options = advised_options(model, format);
  GenerateOptions& options = request.options;
  SamplingOptions& s = options.sampling;
  set(s.temperature, body.number("temperature"));
  set(s.top_p, body.number("top_p"));
  set(s.min_p, body.number("min_p"));
  set(s.presence_penalty, body.number("presence_penalty"));
  set(s.frequency_penalty, body.number("frequency_penalty"));
  set(s.repeat_penalty, body.number("repeat_penalty"));
  set(s.repeat_penalty, body.number("repetition_penalty"));
  s.logit_bias = read_logit_bias(body, model);
  if (const auto top_k = body.integer("top_k")) s.top_k = std::max<int64_t>(*top_k, 0);
  if (const auto seed = body.integer("seed")) s.seed = static_cast<uint64_t>(*seed);
  out.seeded = body.has("seed");
  request.samples = within("n", body.integer("n").value_or(1), 1, 128);
  // The best of as many as are given is all of them.
  if (body.integer("best_of").value_or(request.samples) != request.samples) refuse_field("best_of");
  const auto max_new = body.integer("max_completion_tokens"), max_old = body.integer("max_tokens");
  if (const auto most = max_new ? max_new : max_old) {
    options.max_tokens = within("max_tokens", *most, 0, INT64_MAX);
  }
  request.priority =
      static_cast<int>(within("priority", body.integer("priority").value_or(0), -1000, 1000));
  options.stop = read_stops(body);
  if (body.boolean("ignore_eos").value_or(false)) options.stop_tokens.clear();
  if (const auto tokens = body.integers("stop_token_ids")) {
    for (const int64_t token : *tokens) {
      options.stop_tokens.push_back(
          static_cast<Token>(within("stop_token_ids", token, 0, model.config().vocab - 1)));
    }
  }
  options.show_special = !body.boolean("skip_special_tokens").value_or(true);
  options.logprobs = read_logprobs(body, out.kind);
  out.stream = body.boolean("stream").value_or(false);
  if (const auto stream = body.fields("stream_options")) {
    out.include_usage = stream->boolean("include_usage").value_or(false);
  }
  validate(s);
  return request;
}

void read_chat(const JsonFields& body, const Model& model, ChatFormat format,
               const PictureSource& source, ApiRequest& out) {
  Request request = read_options(body, model, format, out);
  ChatPrompt prompt = read_messages(body, model, format, /*add_generation_prompt=*/true, source);
  request.prompt.tokens = std::move(prompt.tokens);
  out.pictures = std::move(prompt.pictures);
  out.tools = std::move(prompt.tools);
  if (!out.tools.empty()) {
    request.options.shown = tool_marker_tokens(model.tokenizer());
    if (!body.boolean("parallel_tool_calls").value_or(true)) out.most_calls = 1;
  }
  out.requests.push_back(std::move(request));
}

void read_completion(const JsonFields& body, const Model& model, ApiRequest& out) {
  refuse_tools(body);
  Request request = read_options(body, model, ChatFormat::kNone, out);
  out.echo = body.boolean("echo").value_or(false);
  if (out.echo) request.options.prompt_logprobs = request.options.logprobs;
  for (ApiInput& input : read_inputs(body, "prompt", model)) {
    out.requests.push_back(request);
    out.requests.back().prompt.tokens = std::move(input.tokens);
  }
}

}  // namespace

ApiKind api_kind(std::string_view url) {
  std::string_view path = url;
  if (path.ends_with('/')) path.remove_suffix(1);
  if (path.starts_with("/v1/")) path.remove_prefix(3);
  if (path == "/chat/completions") return ApiKind::kChat;
  if (path == "/completions") return ApiKind::kCompletion;
  if (path == "/embeddings") return ApiKind::kEmbedding;
  throw_error(ErrorKind::kUsage,
              "url: expected /v1/chat/completions, /v1/completions or /v1/embeddings, got {}",
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
    }
  });
  return out;
}

}  // namespace drover
