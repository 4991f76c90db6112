// Amounts as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// "8192", "8K", "1M": K is 1,024 tokens, as chunks are counted, and M 1,000,000, as makers of
// models count. Throws kUsage that names `what` for anything else, and for less than 1.
int64_t parse_tokens(std::string_view what, std::string_view text);
// The same of "1K,8K,32K", in the order given.
std::vector<int64_t> parse_token_list(std::string_view what, std::string_view text);

// "64G" or "64GiB" is 64 * 2^30 bytes, "64GB" is 64 * 10^9; K, M and T too. Throws as above.
int64_t parse_bytes(std::string_view what, std::string_view text);

// "491.5 GB"
std::string bytes_text(int64_t bytes);
// "10,485,760"
std::string grouped(int64_t number);
// "80 ms", "12 min", "3.4 h", "92 days"
std::string duration_text(double seconds);

}  // namespace drover
