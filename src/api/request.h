// The requests of the API as JSON, apart from any network: POST /v1/chat/completions,
// /v1/completions, /v1/embeddings and /v1/responses, as OpenAI has them, and /v1/messages, as
// Anthropic has it, become requests to the engine.
//
// What a field means is done; what means nothing here and harms nobody is ignored; what would
// change the answer and cannot be done is refused by name. Pure functions, thread-safe.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "api/pictures.h"
#include "base/error.h"
#include "engine/request.h"
#include "image/tiles.h"
#include "model/model.h"

namespace drover {

enum class ApiKind { kChat, kCompletion, kEmbedding, kResponse, kMessage };

// By the path of its URL, with or without "/v1" and a slash at the end; kUsage for another.
ApiKind api_kind(std::string_view url);
// The path without them: "chat/completions".
std::string_view api_path(ApiKind kind);

// A request that was read.
struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::string model;              // as it was asked for; may be empty
  std::vector<Request> requests;  // to the engine, one for each prompt or input; a chat has one
  // Of the first request, cut but not encoded: its prompt has only tokens.
  std::vector<TiledImage> pictures = {};
  bool seeded = false;         // a seed was named; otherwise it is 0
  bool echo = false;           // of a completion: the prompt's text stands before the answer
  bool stream = false;         // the answer is wanted as it comes
  bool include_usage = false;  // and at its end what it took
  std::vector<std::string> tools = {};  // of a conversation: what may be called
  int64_t most_calls = 128;             // at once
  bool base64 = false;                  // of embeddings: the numbers as base64
  boost::json::object repeated = {};    // of a response: what it repeats of its request
};

// Throws kUsage for fields that are missing or wrong, kUnsupported for those that are refused and
// for pictures where the model has no eyes, and what PictureReader does. Pictures of other hosts
// are brought by `source`.
ApiRequest read_api_request(ApiKind kind, const boost::json::object& body, const Model& model,
                            ChatFormat format, const PictureSource& source = {});

}  // namespace drover
