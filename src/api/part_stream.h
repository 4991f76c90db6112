// What the dialects of one answer share, whose answers are lists of parts, texts and calls in the
// order in which they were said: OpenAI's responses and Anthropic's messages. The whole answer is
// what a stream has put together at its end, so the two cannot differ.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

#include "api/stream.h"
#include "text/tool_calls.h"

namespace drover {

class PartStream : public AnswerStream {
 public:
  void text(size_t prompt, int64_t sample, std::string_view piece) final;
  void done(size_t prompt, std::span<const Answer> answers) final;

  // The whole body of an answer that is known already, of a stream that nothing was told.
  boost::json::object whole(const Answer& answer);

 protected:
  // whole: nobody hears the events, and calls that are damaged are text. An empty `emit` hears
  // nothing.
  PartStream(const ApiRequest& request, ApiName name, Emit emit, bool whole);

  // What was said, in order; a part ends before the next begins. A call's arguments are JSON in
  // pieces, and an object when it ends complete.
  virtual void begin_text() = 0;
  virtual void say(std::string_view piece) = 0;
  virtual void last_words() {}  // of the answer are those of this text
  virtual void end_text(bool complete) = 0;
  virtual void begin_call(int64_t number, std::string_view tool) = 0;
  virtual void argue(std::string_view piece) = 0;
  virtual void end_call(bool complete) = 0;
  // All is said.
  virtual void end(const Answer& answer) = 0;
  // The body as it is now.
  virtual boost::json::object body() const = 0;

  void emit(std::string_view name, const boost::json::object& data) const;

  const ApiRequest& request_;
  const ApiName name_;
  bool in_text_ = false;
  bool called_ = false;  // something, complete

 private:
  void hear(const std::vector<ToolEvent>& events);
  void close_text(bool complete);

  const Emit emit_;
  ToolCallParser calls_;
};

}  // namespace drover
