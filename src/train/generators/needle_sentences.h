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
};

// So many facts, no two with the same key. With `similar`, each second one's key differs from that
// of the one before in a single part: the name, the number, or what is told of it.
std::vector<HiddenFact> hidden_facts(Random& random, int64_t count, bool similar);

}  // namespace drover
