// The messages of a chat: what stands there in OpenAI's form, and what the model is shown.
#pragma once

#include <vector>

#include "formats/json.h"
#include "image/tiles.h"
#include "model/model.h"
#include "text/chat_format.h"

namespace drover {

// kUnsupported for fields that ask for tools: these stand in the text that the model is shown, and
// change how its answer is read.
void refuse_tools(const JsonFields& body);

// The tokens of body.messages in this format, and the pictures in them, cut but not encoded. Throws
// kUsage for what is missing or wrong, kUnsupported for what is not done (tools, and pictures where
// the model has no eyes), and what decode_image() throws.
std::vector<Token> read_messages(const JsonFields& body, const Model& model, ChatFormat format,
                                 bool add_generation_prompt, std::vector<TiledImage>& pictures);

}  // namespace drover
