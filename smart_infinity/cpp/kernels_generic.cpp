#include <bit>
#include <cstring>

#include "blocks.hpp"
#include "dice.hpp"
#include "half.hpp"
#include "kernels.hpp"

namespace smart_infinity::kernels {
namespace generic {
namespace {

#include "recipes.inc"

template <float (*Convert)(std::uint16_t)>
void halves_to_float(const void* values, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t half;  // perhaps at an odd address
    std::memcpy(&half, static_cast<const char*>(values) + 2 * i, sizeof half);
    out[i] = Convert(half);
  }
}

template <std::uint16_t (*Convert)(float)>
void float_to_halves(const float* values, std::size_t n, void* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint16_t half = Convert(values[i]);
    std::memcpy(static_cast<char*>(out) + 2 * i, &half, sizeof half);
  }
}

bool finite(const float* values, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    if ((std::bit_cast<std::uint32_t>(values[i]) & 0x7F800000U) == 0x7F800000U) return false;
  }
  return true;
}

std::size_t at_least(const float* values, std::size_t n, std::uint32_t least,
                     std::uint32_t* places) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < n; ++i) {  // written always, kept where it counts: no branch
    places[found] = static_cast<std::uint32_t>(i);
    found += (std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU) >= least ? 1 : 0;
  }
  return found;
}

}  // namespace
}  // namespace generic

const Table* generic_table() {
  static constexpr Table table{.update = generic::update_by<generic::One>,
                               .bf16_to_float = generic::halves_to_float<bf16_to_float>,
                               .f16_to_float = generic::halves_to_float<f16_to_float>,
                               .float_to_bf16 = generic::float_to_halves<float_to_bf16>,
                               .float_to_f16 = generic::float_to_halves<float_to_f16>,
                               .roll_to_bf16 = dice::float_to_bf16,
                               .decode_block = {blocks::decode<false>, blocks::decode<true>},
                               .encode_block = {blocks::encode<false>, blocks::encode<true>},
                               .finite = generic::finite,
                               .at_least = generic::at_least};
  return &table;
}

}  // namespace smart_infinity::kernels
