// Memory that large loops go through, in pages of 2 MB where the system has them: 4 KB pages of a
// matrix of activations are more than the processor keeps addresses for.
#pragma once

#include <cstddef>

#include "base/aligned.h"

namespace drover {

// Asks for them, of what lies in whole pages of that size. For memory that nothing was written to
// yet. Does not fail: where it is not granted, small pages stay.
void prefer_huge_pages(void* data, size_t bytes);

// As reserve_discarding(), asking when it grows.
template <typename T>
void reserve_huge(AlignedArray<T>& array, size_t count) {
  if (count <= array.size()) return;
  array = AlignedArray<T>(count);
  prefer_huge_pages(array.data(), count * sizeof(T));
}

}  // namespace drover
