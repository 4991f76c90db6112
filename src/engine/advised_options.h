// How a model's makers would have it asked.
#pragma once

#include "engine/request.h"
#include "model/model.h"

namespace drover {

// The sampling that the model's files advise, what this format and the model stop at, no limit; the
// seed is 0.
GenerateOptions advised_options(const Model& model, ChatFormat format);

}  // namespace drover
