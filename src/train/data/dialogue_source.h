// A source of dialogues that are known when it is made, each of them taken once before any comes
// again. What dialogue k is, is the kind's own.
#pragma once

#include <string>
#include <vector>

#include "train/data/dialogue.h"

namespace drover {

class DialogueSource : public Source {
 public:
  std::string_view name() const override { return name_; }
  // kLimit where no dialogue has an answer within `length`.
  Example example(uint64_t seed, uint64_t index, int64_t length) const override;
  SourceFacts facts() const override { return facts_; }

  bool empty() const { return first_answers_.empty(); }

 protected:
  // kUnsupported where the context has no chat format.
  DialogueSource(std::string name, const SourceContext& context);

  // The dialogue that was added as number `i`.
  virtual Dialogue dialogue(size_t i) const = 0;

  // Counts one in. Its pictures need not be there, only the parts that stand for them.
  void add(Dialogue dialogue, SourceFacts::Item item);

  const std::string name_;
  const SourceContext context_;
  SourceFacts facts_;

 private:
  std::vector<int64_t> first_answers_;  // tokens of each one up to its first answer's end, or less
};

}  // namespace drover
