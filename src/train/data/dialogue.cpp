#include "train/data/dialogue.h"

#include <algorithm>

#include "base/error.h"
#include "engine/picture_encoder.h"

namespace drover {
namespace {

size_t pictures_of(const Message& message) {
  return static_cast<size_t>(
      std::count_if(message.content.begin(), message.content.end(),
                    [](const Part& part) { return part.picture.has_value(); }));
}

}  // namespace

bool Lesson::cut(int64_t length) {
  while (!turns.empty() && static_cast<int64_t>(turns.back().tokens) > length) turns.pop_back();
  if (turns.empty()) return false;
  example.tokens.resize(turns.back().tokens);
  example.weights.resize(turns.back().tokens);
  example.pictures.resize(turns.back().pictures);
  return true;
}

Lesson teach(const SourceContext& context, Dialogue dialogue) {
  const std::span<const Message> messages = dialogue.messages;
  const std::vector<float>& weights = dialogue.weights;
  DROVER_CHECK(weights.empty() || weights.size() == messages.size());
  const Tokenizer& tokenizer = *context.tokenizer;
  const auto rendered = [&](size_t count, bool prompt) {
    return render_chat(context.format, tokenizer, messages.first(count), prompt, dialogue.tools);
  };
  Lesson out;
  Example& example = out.example;
  example.tokens = rendered(messages.size(), /*prompt=*/false);
  example.weights.assign(example.tokens.size(), 0.0f);
  size_t pictures = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    pictures += pictures_of(messages[i]);
    const float weight = weights.empty() ? 1.0f : weights[i];
    if (messages[i].role != "assistant" || weight == 0) continue;
    // The turn begins where the prompt ends that a model is asked with. A format that encodes
    // header and content together may join tokens over that border; the joined one is learnt then.
    std::vector<Token> prompt;
    if (i > 0) {
      prompt = rendered(i, /*prompt=*/true);
    } else {
      // A template may put a system turn before the first message, but none before no message: what
      // stands before an answer that says nothing is the prompt.
      const Message nothing("assistant", "");
      prompt = render_chat(context.format, tokenizer, {&nothing, 1},
                           /*add_generation_prompt=*/false, dialogue.tools);
      while (!prompt.empty() && !tokenizer.is_control(prompt.back())) prompt.pop_back();
      if (!prompt.empty()) prompt.pop_back();  // the end of that turn
    }
    std::vector<Token> turn = rendered(i + 1, /*prompt=*/false);
    while (!turn.empty() && !tokenizer.is_control(turn.back())) turn.pop_back();
    DROVER_CHECK(turn.size() <= example.tokens.size() &&
                 std::equal(turn.begin(), turn.end(), example.tokens.begin()));
    const auto begin = std::mismatch(prompt.begin(), prompt.end(), turn.begin(), turn.end()).second;
    std::fill(example.weights.begin() + (begin - turn.begin()),
              example.weights.begin() + (turn.end() - turn.begin()), weight);
    out.turns.push_back({turn.size(), pictures});
  }
  if (out.turns.empty()) {
    throw_error(ErrorKind::kBadData,
                "messages: expected a turn of the assistant to learn from, got none");
  }
  example.pictures = std::move(dialogue.pictures);
  return out;
}

Part picture_part(const SourceContext& context, const Image& image,
                  std::vector<TiledImage>& pictures) {
  if (context.vision == nullptr) {
    throw_error(ErrorKind::kUnsupported, "a picture: expected text alone, the model has no eyes");
  }
  pictures.push_back(cut_tiles(context.vision->tiles, image));
  return {"", picture_tokens(*context.vision, pictures.back().layout)};
}

}  // namespace drover
