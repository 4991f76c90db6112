// JSON and literals spelled as Python spells them: what a chat template's `tojson` writes is what
// models of the family read when they learned, to the space. Pure functions, thread-safe.
#pragma once

#include <boost/json/fwd.hpp>
#include <string>
#include <string_view>

namespace drover {

// json.dumps(text, ensure_ascii=False).
std::string json_string(std::string_view text);

// json.dumps(value, ensure_ascii=False, indent=indent), without an indent for 0. Integers beyond 64
// bits are floats here, since Boost.JSON reads them so.
std::string python_json(const boost::json::value& value, int indent = 0);

// The same value as a Python literal: True, False, None, strings in double quotes.
std::string python_literal(const boost::json::value& value);

}  // namespace drover
