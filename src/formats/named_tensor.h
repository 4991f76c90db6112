// What every file of weights comes down to: tensors with a name, a type, a shape and bytes. Reading
// gives NamedTensor views; writing takes TensorSpec and the bytes in pieces, tensor after tensor,
// so that a model larger than memory can be written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/checked.h"
#include "tensor/dtype.h"

namespace drover {

// A tensor in a mapped file. The file object owns the name and the bytes.
struct NamedTensor {
  std::string_view name;
  DType type = DType::kF32;
  std::vector<int64_t> shape;       // row-major, outermost first; empty for a scalar
  const std::byte* data = nullptr;  // no alignment is promised
  int64_t bytes = 0;
};

// A tensor that is to be written.
struct TensorSpec {
  std::string name;
  DType type = DType::kF32;
  std::vector<int64_t> shape;  // row-major, outermost first
};

// Takes the next bytes of the tensor that is being written.
using TensorSink = std::function<void(std::span<const std::byte> bytes)>;

// Gives the bytes of tensor number `tensor` to the sink, in order and in pieces of any size. May
// throw to cancel; nothing is left on disk then.
using TensorProducer = std::function<void(size_t tensor, const TensorSink& sink)>;

// Bytes of a tensor of this type and shape (outermost first; empty is a scalar); nothing if a
// dimension is negative, the last one is not a whole number of blocks, or the number of values or
// bytes does not fit 63 bits.
inline std::optional<int64_t> tensor_bytes(DType type, std::span<const int64_t> shape) {
  const DTypeInfo& info = dtype_info(type);
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row < 0 || row % info.block_values != 0) return std::nullopt;
  std::optional<uint64_t> values = static_cast<uint64_t>(row);
  std::optional<uint64_t> bytes = checked_mul(static_cast<uint64_t>(row / info.block_values),
                                              static_cast<uint64_t>(info.block_bytes));
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    if (shape[i] < 0 || !values || !bytes) return std::nullopt;
    values = checked_mul(*values, static_cast<uint64_t>(shape[i]));
    bytes = checked_mul(*bytes, static_cast<uint64_t>(shape[i]));
  }
  if (!values || !bytes || *values > INT64_MAX || *bytes > INT64_MAX) return std::nullopt;
  return static_cast<int64_t>(*bytes);
}

}  // namespace drover
