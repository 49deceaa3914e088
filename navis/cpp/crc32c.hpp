// CRC-32C (Castagnoli), by the SSE4.2 instruction where there is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace navis {

// Continues `crc` (0 to begin with) over the bytes; crc32c(0, "123456789") == 0xE3069283.
std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t count);
// The portable version, always there; equal to the above.
std::uint32_t crc32c_portable(std::uint32_t crc, const void* bytes, std::size_t count);

inline std::uint32_t crc32c(std::span<const std::byte> bytes) {
  return crc32c(0, bytes.data(), bytes.size());
}

}  // namespace navis
