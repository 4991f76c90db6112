// Short stories with a world behind them, and questions whose answers follow from it.
#pragma once

#include <string>
#include <vector>

#include "train/generators/generator.h"

namespace drover {

struct Story {
  std::string text;
  std::vector<Turn> questions;  // without the text
};

// Who has which thing, from the beginning to the end, is drawn from pairs of name and thing that
// are learnt; or, held_out, begins with one pair that is not.
Story make_story(Random& random, bool held_out);

}  // namespace drover
