#include "train/manifest.h"

#include <boost/json.hpp>
#include <map>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/file_writer.h"

namespace drover {
namespace {

namespace json = boost::json;

SourceFacts facts_of(const Source* side) { return side == nullptr ? SourceFacts() : side->facts(); }

json::object side_of(const SourceFacts& facts) {
  return {{"items", facts.items.size()}, {"tokens", facts.tokens}};
}

// A learnt item, of which source.
struct Learnt {
  const std::string* source;
  std::string item;
};

[[noreturn]] void refuse(const ManifestSource& source, const std::string& item,
                         const Learnt& other) {
  throw_error(ErrorKind::kBadData, "source {}: {} is held out, and learnt too: {} of source {}",
              source.name, printable(item, 200), printable(other.item, 200), *other.source);
}

}  // namespace

void check_disjoint(std::span<const ManifestSource> sources) {
  std::map<Digest, Learnt> contents;
  for (const ManifestSource& source : sources) {
    const SourceFacts learnt = facts_of(source.learnt);
    for (const auto& [name, content] : learnt.items) {
      if (content != Digest{}) contents.emplace(content, Learnt{&source.name, name});
    }
  }
  for (const ManifestSource& source : sources) {
    const SourceFacts learnt = facts_of(source.learnt), held_out = facts_of(source.held_out);
    std::set<std::string_view> names;
    for (const auto& item : learnt.items) names.insert(item.name);
    for (const auto& [name, content] : held_out.items) {
      if (names.contains(name)) refuse(source, name, {&source.name, name});
      const auto same = contents.find(content);
      if (same != contents.end()) refuse(source, name, same->second);
    }
  }
}

void write_manifest(const std::filesystem::path& path, std::span<const ManifestSource> sources) {
  check_disjoint(sources);
  json::array all;
  for (const ManifestSource& source : sources) {
    const SourceFacts learnt = facts_of(source.learnt), held_out = facts_of(source.held_out);
    json::object out{{"name", source.name}};
    for (const char* key : {"kind", "licence", "origin"}) {
      if (const json::value* value = source.settings->if_contains(key)) out[key] = *value;
    }
    json::array files;
    for (const auto& file : source.learnt != nullptr ? learnt.files : held_out.files) {
      files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", hex(file.sha256)}});
    }
    if (!files.empty()) out["files"] = std::move(files);
    out["learnt"] = side_of(learnt);
    out["held_out"] = side_of(held_out);
    out["settings"] = *source.settings;
    all.push_back(std::move(out));
  }
  write_file(path, json::serialize(json::object{{"sources", std::move(all)}}) + '\n');
}

}  // namespace drover
