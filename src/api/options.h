// What a prompt is asked with, as far as the dialects call it by the same names; and how limits and
// stop strings are read, which they name differently.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/request.h"
#include "formats/json.h"

namespace drover {

// Sampling, seed, priority, tokens that stop or are shown; of `out`, whether it streams and has a
// seed. What is not named is as the model's files advise. Throws as read_api_request().
Request read_options(const JsonFields& body, const Model& model, ChatFormat format,
                     ApiRequest& out);

// kUsage for a value out of this range.
int64_t within(std::string_view field, int64_t value, int64_t least, int64_t most);

// A field of this name, if it is there, is the most tokens that an answer may have.
void read_most_tokens(const JsonFields& body, std::string_view field, Request& request);

// A text, or an array of up to 16.
std::vector<std::string> read_stops(const JsonFields& body, std::string_view field);

}  // namespace drover
