#include "api/data_url.h"

#include <openssl/evp.h>

#include <algorithm>

#include "base/error.h"

namespace drover {
namespace {

bool is_base64(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' ||
         c == '/';
}

}  // namespace

std::vector<std::byte> bytes_of_data_url(std::string_view url, std::string_view where) {
  constexpr std::string_view kScheme = "data:", kCoding = ";base64";
  const size_t comma = url.find(',');
  if (!url.starts_with(kScheme) || comma == std::string_view::npos ||
      !url.substr(0, comma).ends_with(kCoding)) {
    throw Error(ErrorKind::kUsage,
                fmt::format("{}: expected a data URL in base64, got {}", where,
                            printable(url.substr(0, 40))),
                "pictures come as \"data:image/png;base64,...\"");
  }
  return bytes_of_base64(url.substr(comma + 1), where);
}

std::vector<std::byte> bytes_of_base64(std::string_view text, std::string_view where) {
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  const std::string_view digits = text.substr(0, text.size() - padding);
  if (text.size() % 4 != 0 || text.empty() ||
      !std::all_of(digits.begin(), digits.end(), is_base64)) {
    throw_error(ErrorKind::kUsage, "{}: expected base64, got {} characters that are not", where,
                text.size());
  }
  std::vector<std::byte> out(text.size() / 4 * 3);
  const int n = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                reinterpret_cast<const unsigned char*>(text.data()),
                                static_cast<int>(text.size()));
  DROVER_CHECK(n == static_cast<int>(out.size()));
  out.resize(out.size() - padding);
  return out;
}

}  // namespace drover
