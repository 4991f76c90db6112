// The special tokens that Llama 3 and Llama 4 add after their ranks. In the tiktoken files of both
// they are code, not data. Source: spec 7.1 and 7.2; Llama 3: its model card.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace drover {

inline constexpr size_t kLlama3Ranks = 128'000;
inline constexpr size_t kLlama4Ranks = 200'000;

// Texts in the order of ids: 256 from id 128000, 2,048 from id 200000.
std::vector<std::string> llama3_special_tokens();
std::vector<std::string> llama4_special_tokens();

// Those of Llama 4's that conversations and pictures are made of, in the same order: what a small
// vocabulary of our own needs.
std::vector<std::string> llama4_chat_tokens();

}  // namespace drover
