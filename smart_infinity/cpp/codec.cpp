#include "codec.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "half.hpp"

namespace smart_infinity::codec {
namespace {

// A hash of 32 bits with good avalanche (Wellons, "lowbias32").
std::uint32_t mixed(std::uint32_t x) {
  x ^= x >> 16U;
  x *= 0x7FEB352DU;
  x ^= x >> 15U;
  x *= 0x846CA68BU;
  x ^= x >> 16U;
  return x;
}

std::uint32_t seed_of(const Place& place) {
  std::uint32_t seed = mixed(static_cast<std::uint32_t>(place.step));
  seed = mixed(seed ^ static_cast<std::uint32_t>(place.step >> 32U));
  seed = mixed(seed ^ place.parameter);
  return mixed(seed ^ place.array);
}

std::uint32_t dice(std::uint32_t seed, std::uint64_t element) {
  return mixed(seed ^ static_cast<std::uint32_t>(element) ^
               (static_cast<std::uint32_t>(element >> 32U) * 0x9E3779B9U));
}

// Magnitudes relative to the largest, as exponent and 3 bits of mantissa: code c from 1 is
// (8 + c % 8) / 16 * 2^(c / 8 - top), 0 is zero. The codes are the float's own bits, shifted.
constexpr std::uint32_t kMantissa = 23U - 3U;

struct Small {
  std::uint32_t codes;  // 128 for the first moment, 256 for the second
  // Bits of the float that code 0 stands before: (code + base) << kMantissa.
  constexpr std::uint32_t base() const { return (0x3F800000U >> kMantissa) - (codes - 1); }
};

float small_to_float(Small small, std::uint32_t code) {
  return code == 0 ? 0.0F : std::bit_cast<float>((code + small.base()) << kMantissa);
}

// Rounded up with the probability of what is cut off. The largest code is exactly 1.
std::uint32_t float_to_small(Small small, float relative, std::uint32_t random) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(relative);
  const std::uint32_t cut = random >> (32U - kMantissa);
  const std::uint32_t code = (bits + cut) >> kMantissa;
  if (code <= small.base()) {
    // Below the least code: that, or zero, in proportion.
    const float least = small_to_float(small, 1);
    return static_cast<float>(random >> 8U) * 0x1p-24F < relative / least ? 1 : 0;
  }
  return std::min(code - small.base(), small.codes - 1);
}

Small small_of(std::uint32_t array) { return {array == 1 ? 128U : 256U}; }

}  // namespace

void decode_bf16(const std::byte* stored, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t half;
    std::memcpy(&half, stored + 2 * i, sizeof half);
    out[i] = bf16_to_float(half);
  }
}

void encode_bf16(const float* values, std::size_t n, const Place& place, std::byte* stored) {
  const std::uint32_t seed = seed_of(place);
  for (std::size_t i = 0; i < n; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(values[i]);
    const std::uint32_t random = dice(seed, place.element + i) >> 16U;
    // What is not finite must not be carried into something else.
    const bool finite = (bits & 0x7F800000U) != 0x7F800000U;
    const std::uint32_t sum = finite ? bits + random : bits;
    const bool over = finite && (sum & 0x7F800000U) == 0x7F800000U;
    const auto half = static_cast<std::uint16_t>((over ? bits : sum) >> 16U);
    const std::uint16_t nan = float_to_bf16(values[i]);
    const std::uint16_t chosen = std::isnan(values[i]) ? nan : half;
    std::memcpy(stored + 2 * i, &chosen, sizeof chosen);
  }
}

void decode_blocks(std::uint32_t array, const std::byte* codes, const std::byte* scales,
                   std::size_t n, float* out) {
  const Small small = small_of(array);
  float table[256];
  for (std::uint32_t code = 0; code < small.codes; ++code) {
    table[code] = small_to_float(small, code);
    if (array == 1) table[code + 128] = -table[code];
  }
  for (std::size_t i = 0; i < n; ++i) {
    float scale;
    std::memcpy(&scale, scales + i / kBlock * sizeof scale, sizeof scale);
    out[i] = scale * table[std::to_integer<std::uint32_t>(codes[i])];
  }
}

void encode_blocks(const float* values, std::size_t n, const Place& place, std::byte* codes,
                   std::byte* scales) {
  const Small small = small_of(place.array);
  const std::uint32_t seed = seed_of(place);
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    float scale = 0;
    for (std::size_t i = begin; i < begin + kBlock; ++i) {
      scale = std::max(scale, std::abs(values[i]));
    }
    std::memcpy(scales + begin / kBlock * sizeof scale, &scale, sizeof scale);
    for (std::size_t i = begin; i < begin + kBlock; ++i) {
      const float relative = scale > 0 ? std::abs(values[i]) / scale : 0.0F;
      std::uint32_t code = 0;
      if (relative > 0) {
        code = float_to_small(small, relative, dice(seed, place.element + i));
        if (place.array == 2) code = std::max(code, 1U);
      }
      if (place.array == 1 && std::signbit(values[i]) && code > 0) code += 128;
      codes[i] = static_cast<std::byte>(code);
    }
  }
}

}  // namespace smart_infinity::codec
