// What a licence asks of the one who uses a model: a few plain sentences, no legal advice.
#pragma once

#include <string>
#include <vector>

#include "model/model.h"

namespace drover {

// Empty when the licence is not known to us.
std::vector<std::string> licence_asks(const LicenceNote& licence);

}  // namespace drover
