// For the tests of this folder: one small model, and its requests.
#pragma once

#include <gtest/gtest.h>

#include <string_view>

#include "api/request.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover::testing {

inline boost::json::object parse_object(std::string_view text) {
  return boost::json::parse(text).as_object();
}

class ApiTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempFolder();
    write_small_model(*folder_ / "model", "scout");
    model_ = Model::load((*folder_ / "model").string()).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    delete folder_;
  }

  static ApiRequest read(ApiKind kind, std::string_view text) {
    return read_api_request(kind, parse_object(text), *model_, ChatFormat::kChatMl);
  }
  static ApiRequest chat(std::string_view text) { return read(ApiKind::kChat, text); }
  static ApiRequest completion(std::string_view text) { return read(ApiKind::kCompletion, text); }
  static ApiRequest embedding(std::string_view text) { return read(ApiKind::kEmbedding, text); }
  static std::vector<Token> tokens_of(std::string_view text) {
    return model_->tokenizer().encode(text);
  }

  static inline TempFolder* folder_ = nullptr;
  static inline Model* model_ = nullptr;
};

}  // namespace drover::testing
