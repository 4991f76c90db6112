// Reads tests/data/blocks/reference.bin, which tests/reference/blocks_reference.py wrote with the
// Python package `gguf`: the outside judge of our block formats. For tests.
#pragma once

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "base/byte_reader.h"
#include "base/mapped_file.h"
#include "tensor/dtype.h"

namespace drover {

struct BlocksRecord {
  enum Direction : uint32_t { kDequantized = 0, kQuantized = 1 };
  Direction direction;
  DType type;
  std::vector<std::byte> blocks;
  std::vector<float> floats;
};

inline std::vector<BlocksRecord> read_blocks_fixture() {
  const std::string path = "tests/data/blocks/reference.bin";
  const MappedFile file(path);
  ByteReader reader(file.bytes(), path);
  std::vector<BlocksRecord> out;
  while (reader.remaining() > 0) {
    BlocksRecord record;
    record.direction = static_cast<BlocksRecord::Direction>(reader.scalar<uint32_t>("direction"));
    record.type = dtype_from_gguf(reader.scalar<uint32_t>("type")).value();
    const auto values = reader.scalar<uint32_t>("values");
    const auto blocks =
        reader.take(static_cast<uint64_t>(row_bytes(record.type, values)), "blocks");
    record.blocks.assign(blocks.begin(), blocks.end());
    const auto floats = reader.take(uint64_t{values} * sizeof(float), "floats");
    record.floats.resize(values);
    std::memcpy(record.floats.data(), floats.data(), floats.size());
    out.push_back(std::move(record));
  }
  return out;
}

}  // namespace drover
