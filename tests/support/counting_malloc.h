// Counts what malloc and its kin hold, for the whole program with the libraries in it, to learn how
// much memory a piece of work holds at its worst. Include it in one file of a test program. For
// work on one thread, with glibc.
#pragma once

#include <malloc.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

namespace drover::testing {

inline size_t live_bytes = 0;  // held now
inline size_t peak_bytes = 0;  // the most since the last reset_peak()

inline void reset_peak() { peak_bytes = live_bytes; }

inline void add_live(size_t bytes) {
  live_bytes += bytes;
  peak_bytes = std::max(peak_bytes, live_bytes);
}
inline void* counted(void* p) {
  if (p != nullptr) add_live(malloc_usable_size(p));
  return p;
}

}  // namespace drover::testing

#if defined(__SANITIZE_ADDRESS__)

// GCC brings these and no header with them.
extern "C" {
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, size_t),
                                              void (*free_hook)(const volatile void*));
size_t __sanitizer_get_allocated_size(const volatile void* p);
}

// The sanitizer has its own malloc and tells of each call. What was there before it is not known
// when it goes, and counts as nothing.
namespace drover::testing {
inline const int counting_installed = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, size_t size) { add_live(size); },
    [](const volatile void* p) {
      const size_t size = __sanitizer_get_allocated_size(p);
      live_bytes -= std::min(live_bytes, size);
    });
}  // namespace drover::testing

#else

// A program's own malloc takes the place of glibc's everywhere, which stays there under these
// names.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

void* malloc(size_t size) { return drover::testing::counted(__libc_malloc(size)); }
void* calloc(size_t n, size_t size) { return drover::testing::counted(__libc_calloc(n, size)); }
void* realloc(void* p, size_t size) {
  const size_t before = p == nullptr ? 0 : malloc_usable_size(p);
  void* const out = __libc_realloc(p, size);
  if (out == nullptr && size != 0) return nullptr;
  // Both blocks may have been there for a moment.
  if (out != nullptr) drover::testing::add_live(malloc_usable_size(out));
  drover::testing::live_bytes -= before;
  return out;
}
void* memalign(size_t alignment, size_t size) {
  return drover::testing::counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** out, size_t alignment, size_t size) {
  *out = memalign(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
void free(void* p) {
  if (p != nullptr) drover::testing::live_bytes -= malloc_usable_size(p);
  __libc_free(p);
}
}  // extern "C"

#endif
