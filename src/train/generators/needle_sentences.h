// Sentences that tell a number or a code of something, and questions for it.
#pragma once

#include <string>
#include <vector>

#include "train/random.h"

namespace drover {

struct HiddenFact {
  std::string sentence;
  std::string question;
  std::string value;
  std::string statement;  // says the question's words again, and the value
};

// So many facts, no two with the same key. They come in groups of `alike` (from one on): the keys
// of a group differ from its first one's in a single part, the name, the number, or what is told of
// it.
std::vector<HiddenFact> hidden_facts(Random& random, int64_t count, int64_t alike);

}  // namespace drover
