// For the tests of this folder: one small model, and its requests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "api/request.h"
#include "api/stream.h"
#include "tests/support/small_model.h"
#include "tests/support/temp_folder.h"

namespace drover::testing {

inline boost::json::object parse_object(std::string_view text) {
  return boost::json::parse(text).as_object();
}

// As a client reads it: numbers are parsed to within a unit in their last place.
inline boost::json::value as_read(const boost::json::value& sent) {
  return boost::json::parse(boost::json::serialize(sent));
}

// The named events of a stream, in order.
struct EventLog {
  AnswerStream::Emit emit() {
    return [this](std::string_view name, std::string_view data) {
      events.push_back(parse_object(data));
      EXPECT_EQ(events.back().at("type").as_string(), name);
    };
  }
  std::vector<std::string> types() const {
    std::vector<std::string> out;
    for (const auto& event : events) out.emplace_back(event.at("type").as_string());
    return out;
  }

  std::vector<boost::json::object> events;
};

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
  static ApiRequest response(std::string_view text) { return read(ApiKind::kResponse, text); }
  static ApiRequest message(std::string_view text) { return read(ApiKind::kMessage, text); }

  // What this kind of request is refused with, and for which field.
  static ApiError refusal_of(ApiKind kind, std::string_view text) {
    try {
      read(kind, text);
    } catch (const Error& error) {
      return api_error(error, kind);
    }
    ADD_FAILURE() << "accepted: " << text;
    return {};
  }

  static Answer answer_of(std::string_view text, FinishReason finish = FinishReason::kStop) {
    Answer out;
    out.text = text;
    out.tokens.assign(5, 9);
    out.finish = finish;
    out.prompt_tokens = 7;
    out.cached_tokens = 3;
    return out;
  }
  // The events of an answer that comes byte by byte.
  static EventLog stream_of(const ApiRequest& request, const Answer& answer, ApiName name) {
    EventLog log;
    const auto stream = make_stream(request, model_->tokenizer(), std::move(name), log.emit());
    stream->begin();
    for (const char& byte : answer.text) stream->text(0, 0, {&byte, 1});
    stream->done(0, {&answer, 1});
    return log;
  }
  static boost::json::object whole_of(const ApiRequest& request, const Answer& answer,
                                      const ApiName& name) {
    const std::vector<std::vector<Answer>> answers = {{answer}};
    return api_answer(request, answers, model_->tokenizer(), name);
  }

  static std::vector<Token> tokens_of(std::string_view text) {
    return model_->tokenizer().encode(text);
  }

  static inline TempFolder* folder_ = nullptr;
  static inline Model* model_ = nullptr;
};

}  // namespace drover::testing
