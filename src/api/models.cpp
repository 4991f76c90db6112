#include "api/models.h"

namespace drover {

namespace json = boost::json;

json::object model_json(const ServedModel& model) {
  return {{"id", model.id},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "drover"},
          {"max_model_len", model.context}};
}

json::object models_json(std::span<const ServedModel> models) {
  json::array data;
  for (const ServedModel& model : models) data.push_back(model_json(model));
  return {{"object", "list"}, {"data", std::move(data)}};
}

}  // namespace drover
