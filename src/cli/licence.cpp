#include "cli/licence.h"

#include <algorithm>
#include <cctype>

namespace drover {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

std::vector<std::string> licence_asks(const LicenceNote& licence) {
  const std::string id = lower(licence.id), name = lower(licence.name);
  const auto says = [&](std::string_view word) {
    return id.find(word) != std::string::npos || name.find(word) != std::string::npos;
  };
  if (says("llama4") || says("llama-4") || says("llama 4")) {
    // Spec section 11.3.
    return {
        "Pass on a copy of the agreement with the model or anything made from it.",
        "Show \"Built with Llama\" where people see it; begin the name of a model that was trained "
        "with it or its outputs with \"Llama\".",
        "Keep the notice \"Llama 4 is licensed under the Llama 4 Community License, Copyright (c) "
        "Meta Platforms, Inc. All Rights Reserved.\" in a Notice file.",
        "Above 700 million monthly users, ask Meta for a licence of your own.",
        "Follow the Acceptable Use Policy; it withholds the rights to the multimodal models from "
        "persons and companies domiciled in the European Union.",
    };
  }
  if (says("llama3") || says("llama-3") || says("llama 3")) {
    return {
        "Pass on a copy of the agreement, and show \"Built with Meta Llama 3\" or \"Built with "
        "Llama\" as its version says.",
        "Begin the name of a model that was trained with it with \"Llama\".",
        "Above 700 million monthly users, ask Meta for a licence of your own.",
        "Follow the Acceptable Use Policy.",
    };
  }
  if (id == "apache-2.0") {
    return {"Pass on the licence text and existing notices; say which files you changed."};
  }
  if (id == "mit") return {"Pass on the copyright notice and the licence text."};
  if (id.starts_with("bsd-")) return {"Pass on the copyright notice and the licence text."};
  if (id == "cc-by-4.0") return {"Name the makers, link the licence, and say what you changed."};
  return {};
}

}  // namespace drover
