#include "codec.hpp"

#include <algorithm>
#include <cstring>

#include "dice.hpp"
#include "kernels.hpp"

namespace smart_infinity::codec {
namespace {

using dice::mixed;

std::uint32_t seed_of(const Place& place) {
  std::uint32_t seed = mixed(static_cast<std::uint32_t>(place.step));
  seed = mixed(seed ^ static_cast<std::uint32_t>(place.step >> 32U));
  seed = mixed(seed ^ place.parameter);
  return mixed(seed ^ place.array);
}

// For elements that agree in their upper half; the lower one is mixed in.
std::uint32_t with_upper(std::uint32_t seed, std::uint64_t element) {
  return seed ^ (static_cast<std::uint32_t>(element >> 32U) * 0x9E3779B9U);
}

}  // namespace

void decode_bf16(const std::byte* stored, std::size_t n, float* out) {
  kernels::to_float(Dtype::bfloat16, stored, n, out);
}

void encode_bf16(const float* values, std::size_t n, const Place& place, std::byte* stored) {
  const std::uint32_t seed = seed_of(place);
  for (std::size_t begin = 0; begin < n;) {
    const std::uint64_t element = place.element + begin;
    const auto low = static_cast<std::uint32_t>(element);
    const std::size_t count = std::min<std::size_t>(n - begin, (std::uint64_t{1} << 32U) - low);
    kernels::roll_to_bf16(values + begin, count, with_upper(seed, element), low,
                          stored + 2 * begin);
    begin += count;
  }
}

void decode_blocks(std::uint32_t array, const std::byte* codes, const std::byte* scales,
                   std::size_t n, float* out) {
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    float scale;
    std::memcpy(&scale, scales + begin / kBlock * sizeof scale, sizeof scale);
    kernels::decode_block(array == 1, codes + begin, scale, out + begin);
  }
}

void encode_blocks(const float* values, std::size_t n, const Place& place, std::byte* codes,
                   std::byte* scales) {
  const std::uint32_t seed = seed_of(place);
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::uint64_t element = place.element + begin;  // a multiple of kBlock
    const float scale =
        kernels::encode_block(place.array == 1, values + begin, with_upper(seed, element),
                              static_cast<std::uint32_t>(element), codes + begin);
    std::memcpy(scales + begin / kBlock * sizeof scale, &scale, sizeof scale);
  }
}

}  // namespace smart_infinity::codec
