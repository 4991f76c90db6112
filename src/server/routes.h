// The addresses of a server: which path means what, and by which method.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/errors.h"

namespace drover {

enum class Route {
  kHealth,
  kVersion,
  kMetrics,
  kOpenApi,
  kModels,
  kModel,
  kChat,
  kCompletion,
  kEmbedding,
  kResponse,
  kMessage,
  kCountTokens,
  kTokenize,
  kDetokenize,
  kTokenizerInfo,
};

struct RouteMatch {
  Route route;
  std::string_view name;     // of the route, for metrics and logs
  std::string_view methods;  // that it knows: "GET, HEAD"
  bool method_fits = false;
  std::string rest = {};  // of the path: a model's name
};

// The paths of all of them, a name in them as "{model}".
std::vector<std::string> route_paths();

// With "/v1" in front or without, with slashes at the end or without. Nothing for other paths.
std::optional<RouteMatch> find_route(std::string_view method, std::string_view path);

// What is asked of the model there, if something is.
std::optional<ApiKind> kind_of(Route route);

// Whose words are spoken at this path, whether there is something or not.
ApiDialect dialect_of(std::string_view path);

}  // namespace drover
