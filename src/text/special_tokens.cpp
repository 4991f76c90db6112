#include "text/special_tokens.h"

#include <fmt/format.h>

#include <string_view>

namespace drover {
namespace {

// Appends <|PREFIXreserved_special_token_N|> for N from `first` up to and without `end`.
void reserve(std::vector<std::string>& out, std::string_view prefix, int first, int end) {
  for (int n = first; n < end; ++n) {
    out.push_back(fmt::format("<|{}reserved_special_token_{}|>", prefix, n));
  }
}

void append(std::vector<std::string>& out, std::initializer_list<const char*> texts) {
  out.insert(out.end(), texts.begin(), texts.end());
}

}  // namespace

std::vector<std::string> llama3_special_tokens() {
  std::vector<std::string> out = {"<|begin_of_text|>", "<|end_of_text|>"};
  reserve(out, "", 0, 2);
  append(out, {"<|finetune_right_pad_id|>"});
  reserve(out, "", 2, 3);
  append(out, {"<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
               "<|python_tag|>"});
  reserve(out, "", 3, 248);
  return out;
}

std::vector<std::string> llama4_special_tokens() {
  std::vector<std::string> out = {
      "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
      "<|header_start|>",  "<|header_end|>",  "<|eom|>",        "<|eot|>",        "<|step|>"};
  reserve(out, "text_post_train_", 0, 6);
  append(out, {"<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"});
  reserve(out, "text_post_train_", 8, 69);  // 6 and 7 do not exist
  append(out, {"<|image_start|>", "<|image_end|>"});
  reserve(out, "vision_", 0, 2);
  append(out, {"<|tile_x_separator|>", "<|tile_y_separator|>"});
  reserve(out, "vision_", 2, 6);
  append(out, {"<|image|>"});
  reserve(out, "vision_", 6, 7);
  append(out, {"<|patch|>"});
  reserve(out, "vision_", 7, 1048);
  reserve(out, "reasoning_", 0, 8);
  append(out, {"<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"});
  reserve(out, "", 0, 904);
  return out;
}

std::vector<std::string> llama4_chat_tokens() {
  return {"<|begin_of_text|>",    "<|end_of_text|>", "<|header_start|>",
          "<|header_end|>",       "<|eom|>",         "<|eot|>",
          "<|python_start|>",     "<|python_end|>",  "<|finetune_right_pad|>",
          "<|image_start|>",      "<|image_end|>",   "<|tile_x_separator|>",
          "<|tile_y_separator|>", "<|image|>",       "<|patch|>"};
}

}  // namespace drover
