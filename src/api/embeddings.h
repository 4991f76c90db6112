// POST /v1/embeddings: texts, or tokens of the model's own tokenizer, to vectors of length 1
// (RequestKind::kEmbedding).
#pragma once

#include <boost/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/request.h"
#include "formats/json.h"

namespace drover {

// Adds the requests of body.input. Throws as read_api_request().
void read_embedding(const JsonFields& body, const Model& model, ApiRequest& out);

// The body of an answer: of each request, in order, its only answer.
boost::json::object embedding_answer(const ApiRequest& request,
                                     std::span<const std::vector<Answer>> answers,
                                     std::string_view model);

// Little-endian float32 in base64 (RFC 4648): what clients with NumPy ask for.
std::string base64_of(std::span<const float> numbers);

}  // namespace drover
