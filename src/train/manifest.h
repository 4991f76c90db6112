// What a training is made of, written beside its result: sources, files with their digests,
// licences and origins, what is learnt and what is held out.
#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <span>
#include <string>

#include "train/example.h"

namespace drover {

// A source of a recipe, both sides of it; null where a side is empty. Views.
struct ManifestSource {
  std::string name;
  const boost::json::object* settings = nullptr;
  const Source* learnt = nullptr;
  const Source* held_out = nullptr;
};

// kBadData names an item that is held out and learnt too: one of the same name in the same source,
// or one of the same content in any.
void check_disjoint(std::span<const ManifestSource> sources);

// Checks that, and writes the manifest as JSON. The file appears whole or not at all; throws what
// FileWriter throws.
void write_manifest(const std::filesystem::path& path, std::span<const ManifestSource> sources);

}  // namespace drover
