// The requests and answers of the OpenAI API as JSON, apart from any network: POST
// /v1/chat/completions and /v1/completions.
//
// What a field means is done; what means nothing here and harms nobody is ignored; what would
// change the answer and cannot be done is refused by name. Pure functions, thread-safe.
#pragma once

#include <boost/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/request.h"
#include "image/tiles.h"
#include "model/model.h"

namespace drover {

enum class ApiKind { kChat, kCompletion };

// By the path of its URL, with or without "/v1"; kUsage for another.
ApiKind api_kind(std::string_view url);

// A request that was read; its pictures are cut but not encoded: Request::prompt has only tokens.
struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::string model;  // as it was asked for; may be empty
  Request request;
  std::vector<TiledImage> pictures;
  bool echo = false;             // of a completion: the prompt's text stands before the answer
  std::string prompt_text = {};  // for that
};

// Throws kUsage for fields that are missing, wrong or refused, kUnsupported for pictures where the
// model has no eyes, and what decode_image() throws.
ApiRequest read_api_request(ApiKind kind, const boost::json::object& body, const Model& model,
                            ChatFormat format);

// The body of an answer. `id` names it, `created` is in seconds since 1970.
boost::json::object api_answer(const ApiRequest& request, std::span<const Answer> answers,
                               std::string_view id, std::string_view model, int64_t created);

// {"error": {message, type, param, code}} and the status that goes with it.
boost::json::object api_error(const Error& error);
int api_status(const Error& error);

}  // namespace drover
