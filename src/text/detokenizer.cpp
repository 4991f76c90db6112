#include "text/detokenizer.h"

#include "text/utf8.h"

namespace drover {

std::string Detokenizer::push(Token token) {
  if (!tokenizer_.is_control(token)) pending_ += tokenizer_.token_bytes(token);
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step step = utf8_step(pending_, at);
    if (step.cut_short) break;
    if (step.well_formed) {
      out.append(pending_, at, step.length);
    } else {
      out += kReplacementUtf8;
    }
    at += step.length;
  }
  pending_.erase(0, at);
  return out;
}

std::string Detokenizer::flush() {
  const bool broken = !pending_.empty();  // what push keeps is one group
  pending_.clear();
  return std::string(broken ? kReplacementUtf8 : "");
}

}  // namespace drover
