// Replaces operator new and delete of a test program to learn how much memory a piece of work holds
// at its worst. Include it in one file of the program. For work on one thread.
#pragma once

#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace drover::testing {

inline size_t live_bytes = 0;  // held now
inline size_t peak_bytes = 0;  // the most since the last reset_peak()

inline void reset_peak() { peak_bytes = live_bytes; }

inline void* counted(void* p) {
  if (p == nullptr) throw std::bad_alloc();
  live_bytes += malloc_usable_size(p);
  peak_bytes = std::max(peak_bytes, live_bytes);
  return p;
}

inline void uncounted(void* p) noexcept {
  live_bytes -= malloc_usable_size(p);
  std::free(p);
}

}  // namespace drover::testing

// The other forms of new and delete end up in these.
void* operator new(size_t size) { return drover::testing::counted(std::malloc(size)); }
void* operator new(size_t size, std::align_val_t alignment) {
  const auto a = static_cast<size_t>(alignment);
  return drover::testing::counted(std::aligned_alloc(a, (size + a - 1) / a * a));
}
void operator delete(void* p) noexcept { drover::testing::uncounted(p); }
void operator delete(void* p, size_t) noexcept { drover::testing::uncounted(p); }
void operator delete(void* p, std::align_val_t) noexcept { drover::testing::uncounted(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { drover::testing::uncounted(p); }
