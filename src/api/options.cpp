#include "api/options.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "engine/advised_options.h"

namespace drover {
namespace {

namespace json = boost::json;

template <typename T>
void set(T& to, const std::optional<double>& value) {
  if (value) to = static_cast<T>(*value);
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

}  // namespace

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
  request.priority =
      static_cast<int>(within("priority", body.integer("priority").value_or(0), -1000, 1000));
  if (body.boolean("ignore_eos").value_or(false)) options.stop_tokens.clear();
  if (const auto tokens = body.integers("stop_token_ids")) {
    for (const int64_t token : *tokens) {
      options.stop_tokens.push_back(
          static_cast<Token>(within("stop_token_ids", token, 0, model.config().vocab - 1)));
    }
  }
  options.show_special = !body.boolean("skip_special_tokens").value_or(true);
  out.stream = body.boolean("stream").value_or(false);
  validate(s);
  return request;
}

int64_t within(std::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    throw_error(ErrorKind::kUsage, "{}: expected {} to {}, got {}", field, least, most, value);
  }
  return value;
}

void read_most_tokens(const JsonFields& body, std::string_view field, Request& request) {
  if (const auto most = body.integer(field)) {
    request.options.max_tokens = within(field, *most, 0, INT64_MAX);
  }
}

std::vector<std::string> read_stops(const JsonFields& body, std::string_view field) {
  const json::value* stop = body.find(field);
  if (stop == nullptr) return {};
  if (stop->is_string()) return {std::string(stop->get_string())};
  const auto texts = body.texts(field);
  std::vector<std::string> out(texts->begin(), texts->end());
  if (out.size() > 16)
    throw_error(ErrorKind::kUsage, "{}: expected at most 16, got {}", field, out.size());
  return out;
}

}  // namespace drover
