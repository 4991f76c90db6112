// What the machine can do at best, measured here and now: the limits that bench sets results
// beside. Kernels of pure reading and pure multiplying, with nothing else in the loop.
#pragma once

#include "kernels/context.h"

namespace drover {

// Of this many threads together. A multiply-add counts as two operations.
struct MachineLimits {
  int threads = 0;
  double bandwidth = 0;   // bytes per second read from memory, beyond every cache
  double int8_rate = 0;   // 8-bit dot products, operations per second
  double float_rate = 0;  // f32 multiply-adds, operations per second
  double bf16_rate = 0;   // the same of the matrix unit with bf16; 0 where there is none
};

// Measures with all threads of the context and its instruction set, in a second or two. The best of
// several short runs, since a limit is what is possible. Reads from a buffer of four times the
// largest cache (at most a quarter of the free memory), taken for the call.
// Throws kLimit when there is no memory for twice the cache.
MachineLimits measure_limits(Context& context);

// The largest cache of the processor, bytes; 0 if the system does not say.
int64_t largest_cache();

}  // namespace drover
