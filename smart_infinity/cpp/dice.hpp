// Stochastic rounding, to bfloat16 here. Static, and of nothing but arithmetic: each level of the
// kernels compiles a copy of its own for its registers, see kernels_avx2.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace smart_infinity::dice {

// A hash of 32 bits with good avalanche (Wellons, "lowbias32").
static inline std::uint32_t mixed(std::uint32_t x) {
  x ^= x >> 16U;
  x *= 0x7FEB352DU;
  x ^= x >> 15U;
  x *= 0x846CA68BU;
  x ^= x >> 16U;
  return x;
}

// Number i is rounded by the hash of seed ^ (first + i). What is not finite is carried into nothing
// else: infinities stay, NaNs become torch's one, and no finite number becomes an infinity.
static inline void float_to_bf16(const float* values, std::size_t n, std::uint32_t seed,
                                 std::uint32_t first, void* out) {
  constexpr std::uint32_t kInfinity = 0x7F800000U, kNan = 0x7FC00000U;
  auto* to = static_cast<unsigned char*>(out);
  for (std::size_t i = 0; i < n; ++i) {
    const auto bits = __builtin_bit_cast(std::uint32_t, values[i]);
    const std::uint32_t random = mixed(seed ^ (first + static_cast<std::uint32_t>(i))) >> 16U;
    const std::uint32_t sum = bits + random;
    const bool finite = (bits & kInfinity) != kInfinity, over = (sum & kInfinity) == kInfinity;
    std::uint32_t chosen = finite && !over ? sum : bits;
    chosen = (bits & 0x7FFFFFFFU) > kInfinity ? kNan : chosen;
    const auto half = static_cast<std::uint16_t>(chosen >> 16U);
    __builtin_memcpy(to + 2 * i, &half, sizeof half);
  }
}

}  // namespace smart_infinity::dice
