#include "cache/text_view.h"

#include <algorithm>

namespace drover {

int64_t shared_beginning(TextView a, TextView b) {
  const auto differs =
      std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end());
  int64_t same = differs.first - a.tokens.begin();
  for (size_t i = 0; i < std::max(a.pictures.size(), b.pictures.size()); ++i) {
    const PlacedPicture* here = i < a.pictures.size() ? &a.pictures[i] : nullptr;
    const PlacedPicture* there = i < b.pictures.size() ? &b.pictures[i] : nullptr;
    if (here != nullptr && there != nullptr && *here == *there) continue;
    for (const PlacedPicture* one : {here, there}) {
      if (one != nullptr) same = std::min(same, std::max<int64_t>(one->first, 0));
    }
    break;
  }
  return same;
}

}  // namespace drover
