// What goes wrong, in the words of the API that was asked: a status, and OpenAI's {"error":
// {message, type, param, code}} or Anthropic's {"type": "error", "error": {type, message}}. Pure
// functions, thread-safe.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "api/request.h"
#include "base/error.h"

namespace drover {

// Whose words.
enum class ApiDialect { kOpenAi, kAnthropic };

struct ApiError {
  int status = 500;
  std::string message;
  std::string type;                  // in OpenAI's words; Anthropic's follow from the status
  std::optional<std::string> param;  // the field at fault: "messages[0].role"
  std::optional<std::string> code;   // what programs look at: "context_length_exceeded"
};

// request_id: that Anthropic's clients show; empty where it is not known.
boost::json::object error_body(const ApiError& error, ApiDialect dialect,
                               std::string_view request_id = {});

// Of a request of this kind. The field is the one that the message names: Drover's begin with it.
ApiError api_error(const Error& error, ApiKind kind = ApiKind::kCompletion);

// What a server says without asking the engine.
enum class Refusal {
  kWrongKey,     // 401
  kForbidden,    // 403
  kNoModel,      // 404
  kNoPath,       // 404
  kWrongMethod,  // 405
  kTooSlow,      // 408: the request did not come in time
  kTooLarge,     // 413
  kNotJson,      // 415
  kTooMany,      // 429: this key's limit
  kOverloaded,   // 429: the queue is full
  kNotReady,     // 503: loading, or about to end
};
ApiError api_refusal(Refusal refusal, std::string message);

}  // namespace drover
