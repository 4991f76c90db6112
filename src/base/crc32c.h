// CRC32C (Castagnoli): the checksum of iSCSI and of many file formats. It finds every change of up
// to 32 neighbouring bits, and of any three bits in a block of 64 KiB.
// Source: RFC 3720 section 12.1 and appendix B.4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace drover {

// With the processor's instruction where there is one. Thread-safe.
uint32_t crc32c(std::span<const std::byte> bytes);

// The same in plain C++, the twin that tests compare with.
uint32_t crc32c_plain(std::span<const std::byte> bytes);

}  // namespace drover
