#include "train/data/dialogue_source.h"

#include "base/error.h"
#include "train/data/shuffle.h"

namespace drover {

DialogueSource::DialogueSource(std::string name, const SourceContext& context)
    : name_(std::move(name)), context_(context) {
  if (context_.format == ChatFormat::kNone) {
    throw_error(ErrorKind::kUnsupported,
                "source {}: expected a tokenizer with a chat format, got {}", name_,
                context_.tokenizer->vocabulary().source);
  }
}

void DialogueSource::add(Dialogue dialogue, SourceFacts::Item item) {
  const Lesson lesson = teach(context_, std::move(dialogue));
  first_answers_.push_back(static_cast<int64_t>(lesson.turns.front().tokens));
  facts_.tokens += static_cast<int64_t>(lesson.example.tokens.size());
  facts_.items.push_back(std::move(item));
}

Example DialogueSource::example(uint64_t seed, uint64_t index, int64_t length) const {
  const size_t n = first_answers_.size();
  const size_t first = taken_in_turn(seed, index, n);
  for (size_t step = 0; step < n; ++step) {
    const size_t i = (first + step) % n;
    if (first_answers_[i] > length) continue;
    Lesson lesson = teach(context_, dialogue(i));
    const bool fits = static_cast<int64_t>(lesson.example.tokens.size()) <= length;
    if (fits || lesson.cut(length)) return std::move(lesson.example);
  }
  throw Error(
      ErrorKind::kLimit,
      fmt::format("source {}: expected an answer within {} tokens, got none", name_, length),
      "train on longer sequences");
}

}  // namespace drover
