// GET /v1/models and /v1/models/{id}.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <span>
#include <string>

namespace drover {

// A model as it is served.
struct ServedModel {
  std::string id;
  int64_t created = 0;  // seconds since 1970
  int64_t context = 0;  // tokens of prompt and answer; shown as vLLM's max_model_len
};

boost::json::object model_json(const ServedModel& model);
boost::json::object models_json(std::span<const ServedModel> models);

}  // namespace drover
