#include "server/openapi.h"

#include <span>
#include <utility>

#include "base/embedded.h"
#include "base/error.h"

namespace drover {

namespace json = boost::json;

std::span<const EmbeddedFile> openapi_files();

namespace {

// Objects are joined; nothing else may be said twice.
void join(json::object& all, json::object part) {
  for (auto& [key, value] : part) {
    json::value& at = all[key];
    if (at.is_object() && value.is_object()) {
      join(at.get_object(), std::move(value.get_object()));
    } else {
      DROVER_CHECK(at.is_null());
      at = std::move(value);
    }
  }
}

void add_answers(json::object& operation, const json::object& answers) {
  const json::value* security = operation.if_contains("security");
  const bool open_to_all = security != nullptr && security->as_array().empty();
  json::object& own = operation.at("responses").as_object();
  for (const auto& [status, answer] : answers) {
    if (status != "401" || !open_to_all) own.emplace(status, answer);
  }
}

}  // namespace

json::object openapi_document(std::string_view version) {
  json::object all;
  for (const EmbeddedFile& file : openapi_files()) {
    join(all, json::parse({file.text.data(), file.text.size()}).as_object());
  }
  const json::value answers = std::move(all.at("x-answers"));
  all.erase("x-answers");
  for (auto& [path, methods] : all.at("paths").as_object()) {
    for (auto& [method, operation] : methods.as_object()) {
      add_answers(operation.as_object(), answers.at("all").as_object());
      if (method == "post") add_answers(operation.as_object(), answers.at("post").as_object());
    }
  }
  all.at("info").as_object()["version"] = version;
  return all;
}

}  // namespace drover
