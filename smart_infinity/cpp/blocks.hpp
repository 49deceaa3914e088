// One block of 8-bit moments. Static, and of nothing but arithmetic without branches: each level of
// the kernels compiles a copy of its own for its registers, see kernels_avx2.cpp.
//
// Magnitudes relative to the largest, as exponent and 3 bits of mantissa: code c from 1 is
// (8 + c % 8) / 16 * 2^(c / 8 - top), 0 is zero. The codes are the float's own bits, shifted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dice.hpp"

namespace smart_infinity::blocks {

static constexpr std::size_t kLength = 256;
static constexpr std::uint32_t kMantissa = 23U - 3U;

// 128 codes and a sign for the first moment, 256 for the second, which has none.
template <bool kSigned>
static constexpr std::uint32_t kCodes = kSigned ? 128 : 256;
// Bits of the float that code 0 stands before: (code + base) << kMantissa.
template <bool kSigned>
static constexpr std::uint32_t kBase = (0x3F800000U >> kMantissa) - (kCodes<kSigned> - 1);

// All bits where it holds: the compiler makes registers full of these, and branches of more.
static inline std::uint32_t all_if(bool holds) { return 0U - static_cast<std::uint32_t>(holds); }

template <bool kSigned>
static inline float to_float(std::uint32_t code) {
  const std::uint32_t magnitude = kSigned ? code & 0x7FU : code;
  const std::uint32_t sign = kSigned ? (code & 0x80U) << 24U : 0;
  const std::uint32_t bits = magnitude == 0 ? 0 : (magnitude + kBase<kSigned>) << kMantissa;
  return __builtin_bit_cast(float, bits | sign);
}

template <bool kSigned>
static inline void decode(const unsigned char* codes, float scale, float* out) {
  for (std::size_t i = 0; i < kLength; ++i) out[i] = scale * to_float<kSigned>(codes[i]);
}

// Gives the scale. A code is rounded up with the probability of what is cut off, by the hash of
// seed ^ (first + i); below the least code it is that or zero, in proportion, and never zero in the
// second moment, which divides. The largest code is exactly 1.
template <bool kSigned>
static inline float encode(const float* values, std::uint32_t seed, std::uint32_t first,
                           unsigned char* codes) {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < kLength; ++i) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, values[i]) & 0x7FFFFFFFU;
    const std::uint32_t number = bits & all_if(bits <= 0x7F800000U);  // a NaN is no scale
    largest = number > largest ? number : largest;
  }
  const auto scale = __builtin_bit_cast(float, largest);
  const float by = scale > 0 ? scale : 1.0F;
  const float least = to_float<kSigned>(1);
  for (std::size_t i = 0; i < kLength; ++i) {
    const auto bits = __builtin_bit_cast(std::uint32_t, values[i]);
    const float relative = __builtin_bit_cast(float, bits & 0x7FFFFFFFU) / by;
    const std::uint32_t random = dice::mixed(seed ^ (first + static_cast<std::uint32_t>(i)));
    const std::uint32_t cut =
        (__builtin_bit_cast(std::uint32_t, relative) + (random >> (32U - kMantissa))) >> kMantissa;
    const std::uint32_t above = cut - kBase<kSigned>;
    const std::uint32_t most = kCodes<kSigned> - 1;
    const float chance = static_cast<float>(static_cast<std::int32_t>(random >> 8U)) * 0x1p-24F;
    const std::uint32_t few = all_if(chance < relative / least) & 1U;
    const std::uint32_t many = above < most ? above : most;
    const std::uint32_t is_few = all_if(cut <= kBase<kSigned>);
    std::uint32_t code = (few & is_few) | (many & ~is_few);
    if (!kSigned) code = code > 1 ? code : 1;
    code &= all_if(relative > 0);
    if (kSigned) code |= bits >> 24U & 0x80U & all_if(code > 0);
    codes[i] = static_cast<unsigned char>(code);
  }
  return scale;
}

}  // namespace smart_infinity::blocks
