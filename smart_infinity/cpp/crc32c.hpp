// CRC-32C (Castagnoli), by the processor's instruction where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace smart_infinity {

inline constexpr std::size_t kPage = 4096;

// Continues `crc` (0 to begin with) over the bytes; crc32c(0, "123456789") == 0xE3069283.
std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t count);
// The portable version, always there; equal to the above.
std::uint32_t crc32c_portable(std::uint32_t crc, const void* bytes, std::size_t count);

// The sum of stored arrays: the CRC of the CRCs of their pages, the last of which may be short.
// Pages do not wait for each other, so that several are summed side by side.
std::uint32_t page_sum(const void* bytes, std::size_t count);

}  // namespace smart_infinity
