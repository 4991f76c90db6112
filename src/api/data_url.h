// Pictures inside a request, as "data:image/png;base64,..." (RFC 2397, RFC 4648).
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace drover {

// The bytes of a data URL in base64, whatever its media type says: what they are shows in them.
// kUsage for any other URL and for what is no base64; `where` is named in errors.
std::vector<std::byte> bytes_of_data_url(std::string_view url, std::string_view where);

// The bytes of base64 with its padding and without line breaks; kUsage for anything else.
std::vector<std::byte> bytes_of_base64(std::string_view text, std::string_view where);

}  // namespace drover
