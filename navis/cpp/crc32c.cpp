#include "crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define NAVIS_CRC32C_SSE42 1
#endif

namespace navis {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78U;  // bits reversed, as everywhere below

using Row = std::array<std::uint32_t, 256>;

// tables[k][b]: the remainder of byte b followed by k zero bytes.
constexpr std::array<Row, 8> make_tables() {
  std::array<Row, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kPolynomial : 0U);
    tables[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xFFU];
    }
  }
  return tables;
}

constexpr std::array<Row, 8> kTables = make_tables();

std::uint32_t by_eight(std::uint32_t crc, const unsigned char* at, std::size_t count) {
  for (; count >= 8; at += 8, count -= 8) {
    crc ^= static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8 |
           static_cast<std::uint32_t>(at[2]) << 16 | static_cast<std::uint32_t>(at[3]) << 24;
    crc = kTables[7][crc & 0xFFU] ^ kTables[6][(crc >> 8) & 0xFFU] ^
          kTables[5][(crc >> 16) & 0xFFU] ^ kTables[4][crc >> 24] ^ kTables[3][at[4]] ^
          kTables[2][at[5]] ^ kTables[1][at[6]] ^ kTables[0][at[7]];
  }
  for (; count > 0; ++at, --count) crc = (crc >> 8) ^ kTables[0][(crc ^ *at) & 0xFFU];
  return crc;
}

#if defined(NAVIS_CRC32C_SSE42)

// The instruction takes three cycles but one can start every cycle, so three stretches are summed
// side by side. Joining them needs the remainder of a sum followed by `Bytes` zero bytes, which is
// linear in the sum's bits: four look-ups.
template <std::size_t Bytes>
constexpr std::array<Row, 4> make_shift() {
  std::array<std::uint32_t, 32> bits{};  // where each bit of the sum goes
  for (std::size_t bit = 0; bit < 32; ++bit) bits[bit] = 1U << bit;
  for (auto& crc : bits) {
    for (std::size_t i = 0; i < Bytes; ++i) crc = (crc >> 8) ^ kTables[0][crc & 0xFFU];
  }
  std::array<Row, 4> shift{};
  for (std::size_t k = 0; k < 4; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      for (std::size_t bit = 0; bit < 8; ++bit) {
        if ((byte >> bit & 1U) != 0) shift[k][byte] ^= bits[8 * k + bit];
      }
    }
  }
  return shift;
}

std::uint32_t shifted(const std::array<Row, 4>& shift, std::uint32_t crc) {
  return shift[0][crc & 0xFFU] ^ shift[1][(crc >> 8) & 0xFFU] ^ shift[2][(crc >> 16) & 0xFFU] ^
         shift[3][crc >> 24];
}

__attribute__((target("sse4.2"))) inline std::uint64_t step(std::uint64_t crc,
                                                            const unsigned char* at) {
  std::uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return _mm_crc32_u64(crc, word);
}

// All whole triples of stretches of `Bytes`.
template <std::size_t Bytes>
__attribute__((target("sse4.2"))) std::uint32_t by_triples(std::uint32_t start,
                                                           const unsigned char*& at,
                                                           std::size_t& count) {
  static_assert(Bytes % 8 == 0);
  static constexpr std::array<Row, 4> kShift = make_shift<Bytes>();
  for (; count >= 3 * Bytes; at += 3 * Bytes, count -= 3 * Bytes) {
    std::uint64_t first = start, second = 0, third = 0;
    for (std::size_t i = 0; i < Bytes; i += 8) {
      first = step(first, at + i);
      second = step(second, at + Bytes + i);
      third = step(third, at + 2 * Bytes + i);
    }
    start = shifted(kShift, static_cast<std::uint32_t>(first)) ^ static_cast<std::uint32_t>(second);
    start = shifted(kShift, start) ^ static_cast<std::uint32_t>(third);
  }
  return start;
}

__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::uint32_t crc,
                                                               const unsigned char* at,
                                                               std::size_t count) {
  crc = by_triples<1344>(crc, at, count);  // three make a page less a header of up to 64 bytes
  crc = by_triples<128>(crc, at, count);
  std::uint64_t wide = crc;
  for (; count >= 8; at += 8, count -= 8) wide = step(wide, at);
  crc = static_cast<std::uint32_t>(wide);
  for (; count > 0; ++at, --count) crc = _mm_crc32_u8(crc, *at);
  return crc;
}

#endif

}  // namespace

std::uint32_t crc32c_portable(std::uint32_t crc, const void* bytes, std::size_t count) {
  return ~by_eight(~crc, static_cast<const unsigned char*>(bytes), count);
}

std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t count) {
#if defined(NAVIS_CRC32C_SSE42)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) {
    return ~by_instruction(~crc, static_cast<const unsigned char*>(bytes), count);
  }
#endif
  return crc32c_portable(crc, bytes, count);
}

}  // namespace navis
