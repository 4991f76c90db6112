#include "api/errors.h"

#include "text/utf8.h"

namespace drover {
namespace {

namespace json = boost::json;

constexpr std::string_view kInvalid = "invalid_request_error";

// The field that a message names: the words before its colons, as long as they are words. "body" is
// the whole request; JsonFields says "key NAME" and "missing key NAME".
std::optional<std::string> field_of(std::string_view message) {
  std::string out;
  for (;;) {
    const size_t colon = message.find(": ");
    std::string_view word = message.substr(0, colon);
    bool last = colon == std::string_view::npos;
    if (word.starts_with("missing key ")) {
      word.remove_prefix(12);
    } else if (last) {
      break;
    } else if (word.starts_with("key ")) {
      word.remove_prefix(4);
      last = true;
    }
    if (word.empty() || word.find(' ') != std::string_view::npos) break;
    if (word != "body") {
      if (!out.empty()) out += '.';
      out += word;
    }
    if (last) break;
    message.remove_prefix(colon + 2);
  }
  return out.empty() ? std::nullopt : std::optional(out);
}

json::value or_null(const std::optional<std::string>& text) {
  return text ? json::value(*text) : json::value(nullptr);
}

// What a prompt is called in requests of this kind.
std::string_view prompt_field(ApiKind kind) {
  switch (kind) {
    case ApiKind::kChat:
    case ApiKind::kMessage:
      return "messages";
    case ApiKind::kCompletion:
      return "prompt";
    case ApiKind::kEmbedding:
    case ApiKind::kResponse:
      return "input";
  }
  return "prompt";
}

std::string_view anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
  }
  return status < 500 ? "invalid_request_error" : "api_error";
}

}  // namespace

json::object error_body(const ApiError& error, ApiDialect dialect, std::string_view request_id) {
  const std::string message = as_utf8(error.message);
  if (dialect == ApiDialect::kAnthropic) {
    json::object out{{"type", "error"},
                     {"error", {{"type", anthropic_type(error.status)}, {"message", message}}}};
    if (!request_id.empty()) out["request_id"] = request_id;
    return out;
  }
  return {{"error", json::object{{"message", message},
                                 {"type", error.type},
                                 {"param", or_null(error.param)},
                                 {"code", or_null(error.code)}}}};
}

ApiError api_error(const Error& error, ApiKind kind) {
  ApiError out{.status = 400,
               .message = error.hint().empty()
                              ? error.message()
                              : fmt::format("{} ({})", error.message(), error.hint()),
               .type = std::string(kInvalid),
               .param = field_of(error.message()),
               .code = std::nullopt};
  // The engine's word; a response has a field of that name, which is refused.
  if (out.param == "prompt" && error.kind() != ErrorKind::kUnsupported) {
    out.param = prompt_field(kind);
  }
  if (out.param == "samples") out.param = "n";
  switch (error.kind()) {
    case ErrorKind::kUsage:
      out.code = "invalid_value";
      break;
    case ErrorKind::kUnsupported:
      out.code = out.param ? "unsupported_parameter" : "unsupported_value";
      break;
    case ErrorKind::kBadData:  // of a picture, or a token
      out.code = "invalid_value";
      break;
    case ErrorKind::kLimit:
      out.code = error.message().starts_with("prompt: expected at most the context")
                     ? "context_length_exceeded"
                     : "limit_exceeded";
      break;
    case ErrorKind::kNotFound:
      out.status = 404;
      out.code = "not_found";
      break;
    case ErrorKind::kPermission:
      out.status = 403;
      out.type = "permission_error";
      break;
    case ErrorKind::kCancelled:
      out.status = 503;
      out.type = "server_error";
      break;
    case ErrorKind::kIo:
    case ErrorKind::kCannotWrite:
    case ErrorKind::kInternal:
      out.status = 500;
      out.type = "server_error";
      break;
  }
  if (out.type != kInvalid) out.param.reset();
  return out;
}

ApiError api_refusal(Refusal refusal, std::string message) {
  const auto make = [&](int status, std::string_view type, const char* code) {
    return ApiError{.status = status,
                    .message = std::move(message),
                    .type = std::string(type),
                    .param = std::nullopt,
                    .code = code == nullptr ? std::nullopt : std::optional<std::string>(code)};
  };
  switch (refusal) {
    case Refusal::kWrongKey:
      return make(401, kInvalid, "invalid_api_key");
    case Refusal::kForbidden:
      return make(403, "permission_error", nullptr);
    case Refusal::kNoModel: {
      ApiError out = make(404, kInvalid, "model_not_found");
      out.param = "model";
      return out;
    }
    case Refusal::kNoPath:
      return make(404, kInvalid, "unknown_url");
    case Refusal::kWrongMethod:
      return make(405, kInvalid, "method_not_supported");
    case Refusal::kTooSlow:
      return make(408, kInvalid, "request_timeout");
    case Refusal::kTooLarge:
      return make(413, kInvalid, "request_too_large");
    case Refusal::kNotJson:
      return make(415, kInvalid, "unsupported_media_type");
    case Refusal::kTooMany:
      return make(429, "requests", "rate_limit_exceeded");
    case Refusal::kOverloaded:
      return make(429, "server_error", "engine_overloaded");
    case Refusal::kNotReady:
      return make(503, "server_error", "not_ready");
  }
  return make(500, "server_error", nullptr);
}

}  // namespace drover
