// Which instruction set the kernels use. It is chosen once, when a Context is made, and passed
// down: one binary runs anywhere, and a test can ask for each set in turn.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace drover {

enum class Isa {
  kPlain,    // portable C++, the reference
  kAvx2,     // AVX2, FMA, F16C
  kAvxVnni,  // the same and AVX-VNNI: 8-bit dots without AVX-512
  kAvx512,   // AVX-512 F, BW, VL, DQ, VNNI
  kAmx,      // the same, AVX-512 bf16, AMX bf16: a matrix unit, for bf16 weights and where a caller
             // allows rounding. Results of these differ in their last bits, or as far as is
             // allowed, from those of the others (kernels/matmul/matmul.h,
             // kernels/attention/attention.h)
};

std::string_view isa_name(Isa isa);
std::optional<Isa> isa_from_name(std::string_view name);

// The best set that this processor and operating system support.
Isa detect_isa();

// Every set that this machine can run, plain first. A process may use a set once named by these.
std::vector<Isa> available_isas();

}  // namespace drover
