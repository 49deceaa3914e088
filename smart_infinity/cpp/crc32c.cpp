#include "crc32c.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define SMART_INFINITY_SSE42 1
#endif

namespace smart_infinity {
namespace {

constexpr std::array<std::uint32_t, 256> kTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? 0x82F63B78U : 0U);
    table[byte] = crc;
  }
  return table;
}();

#if defined(SMART_INFINITY_SSE42)

__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::uint32_t crc,
                                                               const unsigned char* at,
                                                               std::size_t count) {
  std::uint64_t wide = crc;
  for (; count >= 8; at += 8, count -= 8) {
    std::uint64_t word;
    std::memcpy(&word, at, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<std::uint32_t>(wide);
  for (; count > 0; ++at, --count) crc = _mm_crc32_u8(crc, *at);
  return crc;
}

// The instruction takes three cycles, but one can start in each: four pages keep it busy.
__attribute__((target("sse4.2"))) void four_pages(const unsigned char* at, std::uint32_t* sums) {
  std::uint64_t crc[4] = {~0U, ~0U, ~0U, ~0U};
  for (std::size_t i = 0; i < kPage; i += 8) {
    for (std::size_t page = 0; page < 4; ++page) {
      std::uint64_t word;
      std::memcpy(&word, at + page * kPage + i, sizeof word);
      crc[page] = _mm_crc32_u64(crc[page], word);
    }
  }
  for (std::size_t page = 0; page < 4; ++page) sums[page] = ~static_cast<std::uint32_t>(crc[page]);
}

bool has_instruction() {
  static const bool has = __builtin_cpu_supports("sse4.2");
  return has;
}

#endif

}  // namespace

std::uint32_t crc32c_portable(std::uint32_t crc, const void* bytes, std::size_t count) {
  const auto* at = static_cast<const unsigned char*>(bytes);
  crc = ~crc;
  for (; count > 0; ++at, --count) crc = (crc >> 8U) ^ kTable[(crc ^ *at) & 0xFFU];
  return ~crc;
}

std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t count) {
#if defined(SMART_INFINITY_SSE42)
  if (has_instruction()) {
    return ~by_instruction(~crc, static_cast<const unsigned char*>(bytes), count);
  }
#endif
  return crc32c_portable(crc, bytes, count);
}

std::uint32_t page_sum(const void* bytes, std::size_t count) {
  const auto* at = static_cast<const unsigned char*>(bytes);
  std::vector<std::uint32_t> sums((count + kPage - 1) / kPage);
  std::size_t page = 0;
#if defined(SMART_INFINITY_SSE42)
  if (has_instruction()) {
    for (; (page + 4) * kPage <= count; page += 4) four_pages(at + page * kPage, &sums[page]);
  }
#endif
  for (; page < sums.size(); ++page) {
    const std::size_t begin = page * kPage;
    sums[page] = crc32c(0, at + begin, std::min(kPage, count - begin));
  }
  return crc32c(0, sums.data(), sums.size() * sizeof(std::uint32_t));
}

}  // namespace smart_infinity
