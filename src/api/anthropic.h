// Anthropic's POST /v1/messages and /v1/messages/count_tokens: the same conversations in blocks.
#pragma once

#include <boost/json.hpp>
#include <string>

#include "api/part_stream.h"
#include "formats/json.h"

namespace drover {

// Throws as read_api_request(): kUnsupported for thinking that is asked for, and for tools that are
// not the caller's own.
void read_message_request(const JsonFields& body, const Model& model, ChatFormat format,
                          const PictureSource& source, ApiRequest& out);

// {"input_tokens": N}: what the body's conversation would take.
boost::json::object count_tokens_answer(const boost::json::object& body, const Model& model,
                                        ChatFormat format);

// Named events: the message starts, each block of its content starts, grows and stops, and the
// message ends with its reason and what it took.
class MessageStream : public PartStream {
 public:
  MessageStream(const ApiRequest& request, ApiName name, Emit emit, bool whole = false);

  void begin() override;
  void token(size_t, const DrawnToken&) override {}
  void fail(const ApiError& error) override;

 private:
  void begin_text() override;
  void say(std::string_view piece) override;
  void end_text(bool complete) override;
  void begin_call(int64_t number, std::string_view tool) override;
  void argue(std::string_view piece) override;
  void end_call(bool complete) override;
  void end(const Answer& answer) override;
  boost::json::object body() const override;

  void begin_block();
  void grow(boost::json::object delta);
  void end_block();

  boost::json::object usage_;
  boost::json::value stop_reason_ = nullptr, stop_sequence_ = nullptr;
  boost::json::array content_;  // blocks that are there
  boost::json::object block_;   // in the making
  std::string said_;            // its text, or its input
};

}  // namespace drover
