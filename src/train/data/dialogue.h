// Conversations as examples, for whatever source makes them. Pure functions, thread-safe.
#pragma once

#include <span>
#include <vector>

#include "image/image.h"
#include "text/chat_format.h"
#include "train/sources.h"

namespace drover {

struct Dialogue {
  std::vector<Message> messages;
  // [messages], what the loss of an assistant's turn counts; those of others are never used. Empty:
  // all 1.
  std::vector<float> weights = {};
  std::vector<TiledImage> pictures = {};  // in the order of the parts that stand for them
  Tools tools = {};
};

// A dialogue as an example, and where it may end early: after each turn that is learnt.
struct Lesson {
  struct Turn {
    size_t tokens;    // up to its end, from the beginning of the example
    size_t pictures;  // among them
  };
  Example example;
  std::vector<Turn> turns;  // at least one

  // Ends the example after its last turn that ends within `length` tokens. False where there is
  // none: nothing changes then.
  bool cut(int64_t length);
};

// What is learnt are assistants' turns, from what follows their header to the token that ends them:
// what a model says when it is asked. kBadData where nothing is learnt, and what render_chat()
// throws.
Lesson teach(const SourceContext& context, Dialogue dialogue);

// The part of a message that is this picture; its tiles go to the end of `pictures`. kUnsupported
// for a model without eyes.
Part picture_part(const SourceContext& context, const Image& image,
                  std::vector<TiledImage>& pictures);

}  // namespace drover
