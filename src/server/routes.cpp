#include "server/routes.h"

namespace drover {
namespace {

struct Entry {
  std::string_view path;
  Route route;
  bool reads;  // by GET, without a body
};

constexpr Entry kEntries[] = {
    {"/health", Route::kHealth, true},
    {"/version", Route::kVersion, true},
    {"/metrics", Route::kMetrics, true},
    {"/openapi.json", Route::kOpenApi, true},
    {"/models", Route::kModels, true},
    {"/chat/completions", Route::kChat, false},
    {"/completions", Route::kCompletion, false},
    {"/embeddings", Route::kEmbedding, false},
    {"/tokenize", Route::kTokenize, false},
    {"/detokenize", Route::kDetokenize, false},
    {"/responses", Route::kResponse, false},
    {"/messages", Route::kMessage, false},
    {"/messages/count_tokens", Route::kCountTokens, false},
    {"/tokenizer_info", Route::kTokenizerInfo, true},
};

std::string_view plain(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  if (path.starts_with("/v1/")) path.remove_prefix(3);
  return path;
}

RouteMatch match(const Entry& entry, std::string_view method) {
  RouteMatch out{.route = entry.route,
                 .name = entry.path.substr(1),
                 .methods = entry.reads ? "GET, HEAD" : "POST"};
  out.method_fits = entry.reads ? method == "GET" || method == "HEAD" : method == "POST";
  return out;
}

}  // namespace

std::vector<std::string> route_paths() {
  std::vector<std::string> out;
  for (const Entry& entry : kEntries) out.emplace_back(entry.path);
  out.emplace_back("/models/{model}");
  return out;
}

std::optional<RouteMatch> find_route(std::string_view method, std::string_view path) {
  path = plain(path);
  for (const Entry& entry : kEntries) {
    if (path == entry.path) return match(entry, method);
  }
  constexpr std::string_view kModel = "/models/";
  if (path.starts_with(kModel)) {
    RouteMatch out = match({"/models", Route::kModel, true}, method);
    out.rest = path.substr(kModel.size());
    return out;
  }
  return std::nullopt;
}

std::optional<ApiKind> kind_of(Route route) {
  switch (route) {
    case Route::kChat:
      return ApiKind::kChat;
    case Route::kCompletion:
      return ApiKind::kCompletion;
    case Route::kEmbedding:
      return ApiKind::kEmbedding;
    case Route::kResponse:
      return ApiKind::kResponse;
    case Route::kMessage:
      return ApiKind::kMessage;
    default:
      return std::nullopt;
  }
}

ApiDialect dialect_of(std::string_view path) {
  path = plain(path);
  return path == "/messages" || path.starts_with("/messages/") ? ApiDialect::kAnthropic
                                                               : ApiDialect::kOpenAi;
}

}  // namespace drover
