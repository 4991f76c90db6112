// The description of the API, OpenAPI 3.1: what GET /openapi.json answers, and what the tests check
// answers against. It stands in files beside this one, openapi/*.json: each a part of the document,
// with the paths and schemas of one matter. Pure functions, thread-safe.
#pragma once

#include <boost/json.hpp>
#include <string_view>

namespace drover {

// The parts as one document. What every path answers, and every POST (x-answers in base.json), is
// added to each operation that says nothing else of the same status; 401 only where a key is asked
// for.
boost::json::object openapi_document(std::string_view version);

}  // namespace drover
