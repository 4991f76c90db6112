// Element types of tensors on disk and in memory, with their block geometry. A quantised type packs
// `block_values` consecutive values of a row into `block_bytes` bytes; a row is a whole number of
// blocks. The numbers of the enum are those of the GGUF format (spec section 9.1).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace drover {

enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kBF16 = 30,
  kMXFP4 = 39,
};

struct DTypeInfo {
  DType type;
  std::string_view name;  // "f32", "q4_k": what flags and messages say
  int64_t block_values;   // 1 for plain types
  int64_t block_bytes;
  bool is_weight;  // kernels can multiply with it
};

// Every type of the enum has an entry.
const DTypeInfo& dtype_info(DType type);

inline std::string_view dtype_name(DType type) { return dtype_info(type).name; }
inline bool is_quantized(DType type) { return dtype_info(type).block_values > 1; }

// The type with this GGUF number; nothing if Drover does not know it.
std::optional<DType> dtype_from_gguf(uint32_t number);

// The type with this name, upper or lower case ("Q4_K", "q4_k"); nothing if there is none.
std::optional<DType> dtype_from_name(std::string_view name);

// The name of any GGUF type number, also of those that Drover does not read ("iq2_xxs");
// "undefined" for a number nobody has given out. For messages.
std::string_view gguf_type_name(uint32_t number);

// Bytes of a row of `values` values. `values` must be a whole number of blocks.
inline int64_t row_bytes(DType type, int64_t values) {
  const DTypeInfo& info = dtype_info(type);
  return values / info.block_values * info.block_bytes;
}

}  // namespace drover
