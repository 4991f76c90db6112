// POST /v1/responses, OpenAI's newer endpoint, in its stateless form: nothing is kept, so what goes
// before comes with each request.
#pragma once

#include <boost/json.hpp>
#include <vector>

#include "api/logprobs.h"
#include "api/part_stream.h"
#include "formats/json.h"

namespace drover {

// Throws as read_api_request(): kUnsupported for what would need a memory (previous_response_id,
// conversation, background, references to items) and for tools that are not the caller's own.
void read_response_request(const JsonFields& body, const Model& model, ChatFormat format,
                           const PictureSource& source, ApiRequest& out);

// Named events, numbered. The response is created and in progress; each item of its output, a
// message or a call, is added, grows and is done; at the end the response is completed, incomplete
// or failed, and stands there whole.
class ResponseStream : public PartStream {
 public:
  ResponseStream(const ApiRequest& request, const Tokenizer& tokenizer, ApiName name, Emit emit,
                 bool whole = false);

  void begin() override;
  void token(size_t prompt, const DrawnToken& token) override;
  void fail(const ApiError& error) override;

 private:
  void begin_text() override;
  void say(std::string_view piece) override;
  void last_words() override;
  void end_text(bool complete) override;
  void begin_call(int64_t number, std::string_view tool) override;
  void argue(std::string_view piece) override;
  void end_call(bool complete) override;
  void end(const Answer& answer) override;
  boost::json::object body() const override;

  void begin_item(boost::json::object item);
  void end_item(bool complete);
  // An event about the item in the making.
  void tell(std::string_view type, boost::json::object data);
  void tell_response(std::string_view type);
  void send(std::string_view type, boost::json::object data);

  const Tokenizer tokenizer_;
  int64_t sequence_ = 0;
  std::string_view status_ = "in_progress";
  boost::json::value error_ = nullptr, incomplete_ = nullptr, usage_ = nullptr;
  boost::json::array output_;           // items that are done
  boost::json::object item_;            // in the making
  std::string said_;                    // its text, or its arguments
  boost::json::array logprobs_;         // of its text
  std::vector<ChoiceLogprobs> unsaid_;  // of tokens whose text is still to come
};

}  // namespace drover
