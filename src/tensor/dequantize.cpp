#include "tensor/dequantize.h"

#include <cstring>

#include "base/error.h"
#include "tensor/blocks.h"
#include "tensor/float16.h"

namespace drover {
namespace {

int nibble(const uint8_t* bytes, int j) { return j < 16 ? bytes[j] & 15 : bytes[j - 16] >> 4; }

int bit(const uint8_t* bytes, int j) { return (bytes[j / 8] >> (j % 8)) & 1; }

Block32 unpack(const BlockQ8_0* row, int64_t index) {
  const BlockQ8_0& b = row[index];
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kOneScale, {}, {d, d}, 0, {}};
  for (int j = 0; j < 32; ++j) out.q[j] = b.q[j];
  return out;
}

Block32 unpack(const BlockQ4_0* row, int64_t index) {
  const BlockQ4_0& b = row[index];
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kOneScale, {}, {d, d}, 0, {}};
  for (int j = 0; j < 32; ++j) out.q[j] = static_cast<int8_t>(nibble(b.q, j) - 8);
  return out;
}

Block32 unpack(const BlockQ4_1* row, int64_t index) {
  const BlockQ4_1& b = row[index];
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kWithMinimum, {}, {d, d}, to_float(f16(b.m)), {}};
  for (int j = 0; j < 32; ++j) out.q[j] = static_cast<int8_t>(nibble(b.q, j));
  return out;
}

Block32 unpack(const BlockQ5_0* row, int64_t index) {
  const BlockQ5_0& b = row[index];
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kOneScale, {}, {d, d}, 0, {}};
  for (int j = 0; j < 32; ++j) {
    out.q[j] = static_cast<int8_t>((nibble(b.q, j) | bit(b.high, j) << 4) - 16);
  }
  return out;
}

Block32 unpack(const BlockQ5_1* row, int64_t index) {
  const BlockQ5_1& b = row[index];
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kWithMinimum, {}, {d, d}, to_float(f16(b.m)), {}};
  for (int j = 0; j < 32; ++j) {
    out.q[j] = static_cast<int8_t>(nibble(b.q, j) | bit(b.high, j) << 4);
  }
  return out;
}

// Scale and minimum of sub-block s, which Q4_K and Q5_K have in common.
template <typename Block>
Block32 k_frame(const Block& b, int s) {
  const float scale = to_float(f16(b.d)) * static_cast<float>(k_scale(b.scales, s));
  const float min = to_float(f16(b.dmin)) * static_cast<float>(k_min(b.scales, s));
  return {BlockForm::kWithMinimum, {}, {scale, scale}, -min, {}};
}

Block32 unpack(const BlockQ4_K* row, int64_t index) {
  const BlockQ4_K& b = row[index / 8];
  const int s = static_cast<int>(index % 8);
  Block32 out = k_frame(b, s);
  for (int l = 0; l < 32; ++l) {
    out.q[l] = static_cast<int8_t>((b.q[32 * (s / 2) + l] >> (4 * (s % 2))) & 15);
  }
  return out;
}

Block32 unpack(const BlockQ5_K* row, int64_t index) {
  const BlockQ5_K& b = row[index / 8];
  const int s = static_cast<int>(index % 8);
  Block32 out = k_frame(b, s);
  for (int l = 0; l < 32; ++l) {
    const int low = (b.q[32 * (s / 2) + l] >> (4 * (s % 2))) & 15;
    out.q[l] = static_cast<int8_t>(low | ((b.high[l] >> s) & 1) << 4);
  }
  return out;
}

Block32 unpack(const BlockQ6_K* row, int64_t index) {
  const BlockQ6_K& b = row[index / 8];
  const int half = static_cast<int>(index % 8) / 4, s = static_cast<int>(index % 4);
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kTwoScales, {}, {}, 0, {}};
  for (int i = 0; i < 2; ++i) {
    out.scale[i] = d * static_cast<float>(b.scales[8 * half + 2 * s + i]);
  }
  for (int l = 0; l < 32; ++l) {
    const int low = (b.low[64 * half + 32 * (s % 2) + l] >> (4 * (s / 2))) & 15;
    const int high = (b.high[32 * half + l] >> (2 * s)) & 3;
    out.q[l] = static_cast<int8_t>((low | high << 4) - 32);
  }
  return out;
}

// The 4-bit scales go into the integers, 45 at most: one scale is left, and the minima are whole
// numbers of one unit.
Block32 unpack(const BlockQ2_K* row, int64_t index) {
  const BlockQ2_K& b = row[index / 8];
  const int half = static_cast<int>(index % 8) / 4, s = static_cast<int>(index % 4);
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kTwoMinima, {}, {d, d}, -to_float(f16(b.dmin)), {}};
  const uint8_t* scales = b.scales + 8 * half + 2 * s;
  for (int i = 0; i < 2; ++i) out.m[i] = static_cast<int8_t>(scales[i] >> 4);
  for (int l = 0; l < 32; ++l) {
    const int code = (b.q[32 * half + l] >> (2 * s)) & 3;
    out.q[l] = static_cast<int8_t>((scales[l / 16] & 15) * code);
  }
  return out;
}

Block32 unpack(const BlockQ3_K* row, int64_t index) {
  const BlockQ3_K& b = row[index / 8];
  const int i = static_cast<int>(index % 8), half = i / 4, s = i % 4;
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kTwoScales, {}, {}, 0, {}};
  for (int k = 0; k < 2; ++k) {
    out.scale[k] = d * static_cast<float>(k3_scale(b.scales, 2 * i + k));
  }
  for (int l = 0; l < 32; ++l) {
    const int low = (b.low[32 * half + l] >> (2 * s)) & 3;
    out.q[l] = static_cast<int8_t>((low | ((b.high[l] >> i) & 1) << 2) - 4);
  }
  return out;
}

Block32 unpack(const BlockIQ4_NL* row, int64_t index) {
  const BlockIQ4_NL& b = row[index];
  const float d = to_float(f16(b.d));
  Block32 out{BlockForm::kOneScale, {}, {d, d}, 0, {}};
  for (int j = 0; j < 32; ++j) out.q[j] = kIq4Values[nibble(b.q, j)];
  return out;
}

Block32 unpack(const BlockIQ4_XS* row, int64_t index) {
  const BlockIQ4_XS& b = row[index / 8];
  const int s = static_cast<int>(index % 8);
  const float scale = to_float(f16(b.d)) * static_cast<float>(iq4_scale(b, s));
  Block32 out{BlockForm::kOneScale, {}, {scale, scale}, 0, {}};
  for (int j = 0; j < 32; ++j) out.q[j] = kIq4Values[nibble(b.q + 16 * s, j)];
  return out;
}

Block32 unpack(const BlockMXFP4* row, int64_t index) {
  const BlockMXFP4& b = row[index];
  const float scale = half_e8m0(b.exponent);
  Block32 out{BlockForm::kOneScale, {}, {scale, scale}, 0, {}};
  for (int j = 0; j < 32; ++j) out.q[j] = kMxfp4Values[nibble(b.q, j)];
  return out;
}

template <typename Block>
const Block* as(const std::byte* row) {
  return reinterpret_cast<const Block*>(row);
}

template <typename T>
T load(const std::byte* row, size_t i) {
  T out;
  std::memcpy(&out, row + i * sizeof(T), sizeof(T));
  return out;
}

}  // namespace

Block32 unpack_block(DType type, const std::byte* row, int64_t index) {
  switch (type) {
    case DType::kQ8_0:
      return unpack(as<BlockQ8_0>(row), index);
    case DType::kQ4_0:
      return unpack(as<BlockQ4_0>(row), index);
    case DType::kQ4_1:
      return unpack(as<BlockQ4_1>(row), index);
    case DType::kQ5_0:
      return unpack(as<BlockQ5_0>(row), index);
    case DType::kQ5_1:
      return unpack(as<BlockQ5_1>(row), index);
    case DType::kQ4_K:
      return unpack(as<BlockQ4_K>(row), index);
    case DType::kQ5_K:
      return unpack(as<BlockQ5_K>(row), index);
    case DType::kQ6_K:
      return unpack(as<BlockQ6_K>(row), index);
    case DType::kQ2_K:
      return unpack(as<BlockQ2_K>(row), index);
    case DType::kQ3_K:
      return unpack(as<BlockQ3_K>(row), index);
    case DType::kIQ4_NL:
      return unpack(as<BlockIQ4_NL>(row), index);
    case DType::kIQ4_XS:
      return unpack(as<BlockIQ4_XS>(row), index);
    case DType::kMXFP4:
      return unpack(as<BlockMXFP4>(row), index);
    default:
      throw_error(ErrorKind::kUnsupported, "a quantised row: expected a quantised type, got {}",
                  dtype_name(type));
  }
}

void dequantize_row(DType type, const std::byte* row, std::span<float> out) {
  switch (type) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), row, out.size_bytes());
      return;
    case DType::kF16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(load<f16>(row, i));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(load<bf16>(row, i));
      return;
    default:
      break;
  }
  const auto& info = dtype_info(type);
  if (!info.is_weight) {
    throw_error(ErrorKind::kUnsupported, "a row of weights: expected a weight type, got {}",
                info.name);
  }
  DROVER_CHECK(static_cast<int64_t>(out.size()) % info.block_values == 0);
  for (size_t i = 0; i < out.size() / 32; ++i) {
    const Block32 block = unpack_block(type, row, static_cast<int64_t>(i));
    float* x = out.data() + 32 * i;
    for (int j = 0; j < 32; ++j) {
      x[j] = block.scale[j / 16] * static_cast<float>(block.q[j]);
    }
    if (block.form == BlockForm::kWithMinimum) {
      for (int j = 0; j < 32; ++j) x[j] += block.minimum;
    }
    if (block.form == BlockForm::kTwoMinima) {
      for (int j = 0; j < 32; ++j) x[j] += block.minimum * static_cast<float>(block.m[j / 16]);
    }
  }
}

}  // namespace drover
