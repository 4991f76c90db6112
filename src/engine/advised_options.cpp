#include "engine/advised_options.h"

namespace drover {

GenerateOptions advised_options(const Model& model, ChatFormat format) {
  const GenerationDefaults& advice = model.generation();
  GenerateOptions out;
  SamplingOptions& s = out.sampling;
  if (advice.temperature) s.temperature = static_cast<float>(*advice.temperature);
  if (advice.greedy) s.temperature = 0;
  if (advice.top_k) s.top_k = *advice.top_k;
  if (advice.top_p) s.top_p = static_cast<float>(*advice.top_p);
  if (advice.min_p) s.min_p = static_cast<float>(*advice.min_p);
  if (advice.repeat_penalty) s.repeat_penalty = static_cast<float>(*advice.repeat_penalty);
  out.stop_tokens = model.stop_tokens(format);
  return out;
}

}  // namespace drover
