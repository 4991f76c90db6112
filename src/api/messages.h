// The messages of a chat: what stands there in OpenAI's form, and what the model is shown.
#pragma once

#include <string>
#include <vector>

#include "api/pictures.h"
#include "api/request.h"
#include "formats/json.h"
#include "image/tiles.h"
#include "model/model.h"
#include "text/chat_format.h"

namespace drover {

// A conversation as it is asked.
struct ChatPrompt {
  std::vector<Token> tokens;
  std::vector<TiledImage> pictures;  // cut but not encoded
  std::vector<std::string> tools;    // names of those that may be called
};

// A conversation while it is read, in whatever dialect.
struct Conversation {
  std::vector<Message> messages;
  PictureReader pictures;

  // What the model is shown of it. Throws as render_chat().
  ChatPrompt prompt(const Model& model, ChatFormat format, const Tools& tools,
                    bool add_generation_prompt = true);
};

// body.messages in this format, with body.tools as body.tool_choice has them. Throws kUsage for
// what is missing or wrong, kUnsupported for what is not done (the calls before there were tools,
// and pictures where the model has no eyes), and what PictureReader does.
ChatPrompt read_messages(const JsonFields& body, const Model& model, ChatFormat format,
                         bool add_generation_prompt, const PictureSource& source = {});

// This conversation is what `out` asks, with these options.
void ask_chat(ChatPrompt prompt, const Model& model, Request options, ApiRequest& out);

// kUnsupported for fields that ask for tools: these stand in the text of a chat, and a completion
// has its text from the caller.
void refuse_tools(const JsonFields& body);

}  // namespace drover
