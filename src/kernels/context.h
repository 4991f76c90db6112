// What every operation gets first: the threads to run on, the instruction set to use, and scratch
// memory that lasts for one operation. One thread at a time uses a Context.
#pragma once

#include <cstddef>
#include <vector>

#include "base/aligned.h"
#include "base/threads.h"
#include "kernels/isa.h"

namespace drover {

class Context {
 public:
  explicit Context(int threads, Isa isa = detect_isa())
      : isa(isa), threads(threads), scratch_(static_cast<size_t>(threads)) {}

  const Isa isa;
  ThreadPool threads;

  // At least `count` elements of uninitialised memory for this worker, cache-line aligned. It is
  // the same memory at every call: one operation uses it at a time, and keeps nothing in it.
  template <typename T>
  T* scratch(int worker, size_t count) {
    auto& bytes = scratch_[static_cast<size_t>(worker)];
    bytes.reserve_discarding(count * sizeof(T));
    return reinterpret_cast<T*>(bytes.data());
  }

  // The same for what workers leave for each other within one operation. Not for use in a worker.
  template <typename T>
  T* shared_scratch(size_t count) {
    shared_scratch_.reserve_discarding(count * sizeof(T));
    return reinterpret_cast<T*>(shared_scratch_.data());
  }

 private:
  std::vector<AlignedArray<std::byte>> scratch_;
  AlignedArray<std::byte> shared_scratch_;
};

}  // namespace drover
