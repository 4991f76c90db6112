#include "server/openapi.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "server/routes.h"

namespace drover {
namespace {

namespace json = boost::json;

// Calls visit(reference) for every "$ref".
template <typename Visit>
void visit_references(const json::value& value, Visit visit) {
  if (const json::array* array = value.if_array()) {
    for (const json::value& one : *array) visit_references(one, visit);
  } else if (const json::object* object = value.if_object()) {
    for (const auto& [key, one] : *object) {
      if (key == "$ref") visit(std::string(one.as_string()));
      visit_references(one, visit);
    }
  }
}

TEST(OpenApi, DescribesEveryRouteAndNothingElse) {
  const json::object document = openapi_document("1.2.3");
  EXPECT_EQ(document.at("info").at("version"), "1.2.3");
  std::set<std::string> described, known;
  for (const auto& [path, methods] : document.at("paths").as_object()) described.emplace(path);
  for (const std::string& path : route_paths()) known.insert(path);
  EXPECT_EQ(described, known);
}

TEST(OpenApi, EveryOperationIsAMethodOfItsRoute) {
  const json::object document = openapi_document("1.2.3");
  std::set<std::string> ids;
  for (const auto& [path, methods] : document.at("paths").as_object()) {
    size_t fitting = 0;
    for (const char* method : {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}) {
      const auto route = find_route(method, path);
      ASSERT_TRUE(route) << path;
      fitting += route->method_fits;
    }
    EXPECT_EQ(methods.as_object().size(), fitting) << path;
    for (const auto& [method, operation] : methods.as_object()) {
      std::string upper(method);
      for (char& c : upper) c = static_cast<char>(std::toupper(c));
      EXPECT_TRUE(find_route(upper, path)->method_fits) << upper << " " << path;
      EXPECT_TRUE(ids.emplace(operation.at("operationId").as_string()).second) << path;
    }
  }
}

TEST(OpenApi, EveryOperationSaysWhatEveryPathAnswers) {
  const json::object document = openapi_document("1.2.3");
  for (const auto& [path, methods] : document.at("paths").as_object()) {
    for (const auto& [method, operation] : methods.as_object()) {
      const json::object& answers = operation.at("responses").as_object();
      for (const char* status : {"200", "400", "403", "405", "408", "429", "503"}) {
        EXPECT_TRUE(answers.contains(status)) << path << " " << status;
      }
      for (const char* status : {"413", "415"}) {
        EXPECT_EQ(answers.contains(status), method == "post") << path << " " << status;
      }
      EXPECT_EQ(answers.contains("401"), !operation.as_object().contains("security")) << path;
    }
  }
  EXPECT_FALSE(document.contains("x-answers"));
}

TEST(OpenApi, EveryReferenceLeadsToAPartAndEveryPartIsReferredTo) {
  const json::object document = openapi_document("1.2.3");
  std::set<std::string> wanted, there;
  visit_references(document, [&](const std::string& to) { wanted.insert(to); });
  for (const auto& [kind, parts] : document.at("components").as_object()) {
    if (kind == "securitySchemes") continue;
    for (const auto& [name, part] : parts.as_object()) {
      there.insert("#/components/" + std::string(kind) + "/" + std::string(name));
    }
  }
  EXPECT_EQ(wanted, there);
}

}  // namespace
}  // namespace drover
