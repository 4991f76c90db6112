// An index of named things: their positions in order of their names. A sorted list instead of a
// hash table, since names come from outside: nobody can choose names that make it slow, and it
// takes four bytes a name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string_view>
#include <vector>

namespace drover {

// `name_of(i)` gives the name of item i of `count`. Equal names end up side by side.
template <typename NameOf>
std::vector<uint32_t> index_by_name(size_t count, NameOf name_of) {
  std::vector<uint32_t> index(count);
  std::iota(index.begin(), index.end(), 0u);
  std::sort(index.begin(), index.end(),
            [&](uint32_t a, uint32_t b) { return name_of(a) < name_of(b); });
  return index;
}

// A position whose name another position has too; nothing if all names differ.
template <typename NameOf>
std::optional<uint32_t> find_duplicate(const std::vector<uint32_t>& index, NameOf name_of) {
  const auto at = std::adjacent_find(
      index.begin(), index.end(), [&](uint32_t a, uint32_t b) { return name_of(a) == name_of(b); });
  if (at == index.end()) return std::nullopt;
  return *at;
}

// The position that has this name; nothing if none does.
template <typename NameOf>
std::optional<uint32_t> find_name(const std::vector<uint32_t>& index, NameOf name_of,
                                  std::string_view name) {
  const auto at = std::lower_bound(index.begin(), index.end(), name,
                                   [&](uint32_t i, std::string_view n) { return name_of(i) < n; });
  if (at == index.end() || name_of(*at) != name) return std::nullopt;
  return *at;
}

}  // namespace drover
