// Expects an Error of a kind with words in its text. A test of a refusal names both, so that it
// cannot pass for another reason.
#pragma once

#include <gtest/gtest.h>

#include <string_view>

#include "base/error.h"

namespace drover::testing {

template <typename Body>
void expect_error(ErrorKind kind, std::string_view words, Body body) {
  try {
    body();
    ADD_FAILURE() << "expected an Error with \"" << words << "\", got none";
  } catch (const Error& error) {
    EXPECT_EQ(error_kind_name(error.kind()), error_kind_name(kind)) << error.what();
    EXPECT_NE(std::string_view(error.what()).find(words), std::string_view::npos)
        << "expected \"" << words << "\" in: " << error.what();
  }
}

}  // namespace drover::testing
