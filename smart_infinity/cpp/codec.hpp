// Moments as they are stored, in fewer bits than the kernels compute with. Rounding is stochastic,
// so that changes smaller than a step are not lost for ever, and yet the same for the same element
// and step however the model is cut: the dice are a hash of both.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.hpp"

namespace smart_infinity::codec {

inline constexpr std::size_t kBlock = 256;  // numbers of 8 bits that share a scale

// Which element a range begins with, and when.
struct Place {
  std::uint64_t step = 0;
  std::uint32_t parameter = 0;
  std::uint32_t array = 0;  // 1 or 2, as in Shape
  std::uint64_t element = 0;
};

// bfloat16, n numbers.
void decode_bf16(const std::byte* stored, std::size_t n, float* out);
void encode_bf16(const float* values, std::size_t n, const Place& place, std::byte* stored);

// Blocks of 8-bit numbers: n is a multiple of kBlock. A code is a small float relative to its
// block's largest magnitude: sign, 4 bits of exponent, 3 of mantissa for the first moment; 5 and 3
// for the second, which is never negative and never rounded to zero, because it divides.
void decode_blocks(std::uint32_t array, const std::byte* codes, const std::byte* scales,
                   std::size_t n, float* out);
void encode_blocks(const float* values, std::size_t n, const Place& place, std::byte* codes,
                   std::byte* scales);

}  // namespace smart_infinity::codec
