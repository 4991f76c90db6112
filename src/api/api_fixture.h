// For the tests of this folder: one small model, and its requests.
#pragma once

#include <string_view>

#include "api/request.h"
#include "tests/support/small_model.h"

namespace drover::testing {

inline boost::json::object parse_object(std::string_view text) {
  return boost::json::parse(text).as_object();
}

class ApiTest : public SmallModelTest {
 protected:
  static ApiRequest read(ApiKind kind, std::string_view text) {
    return read_api_request(kind, parse_object(text), *model_, ChatFormat::kChatMl);
  }
  static ApiRequest chat(std::string_view text) { return read(ApiKind::kChat, text); }
  static ApiRequest completion(std::string_view text) { return read(ApiKind::kCompletion, text); }
  static ApiRequest embedding(std::string_view text) { return read(ApiKind::kEmbedding, text); }
};

}  // namespace drover::testing
