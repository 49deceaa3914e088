// Optimizer updates, conversions and sums over arrays; a portable version, one for AVX2+FMA+F16C
// and one for AVX-512F as well, chosen at run time, with the same bits.
// SMART_INFINITY_SIMD=generic|avx2|avx512 overrides the choice (an unknown or unsupported value is
// an Error of kind environment).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "hyper.hpp"
#include "types.hpp"

namespace smart_infinity::kernels {

enum class Level : std::uint8_t { generic, avx2, avx512 };
inline constexpr std::array kLevels{Level::generic, Level::avx2, Level::avx512};  // best last

const char* name_of(Level level);
Level level_named(const std::string& name);  // Error(environment) where there is none
bool supported(Level level);
Level active();
// For tests: use this level from now on.
void use(Level level);

// torch's fused kernels work on whole registers and finish a tensor's last elements one by one,
// where the compiler has fused other products: the two give other bits now and then.
enum class Recipe : std::uint8_t { whole, rest };

// One step over n elements, in place. `first` and `second` are the moments (Adam: mean and
// variance; AdaGrad: the sum, none; SGD: the momentum or none). Each element's result depends on
// nothing but its own inputs, so that any cut of the arrays gives the same bits.
void update(Kind kind, const Hyper& hyper, Recipe recipe, std::size_t n, float* parameters,
            const float* gradients, float* first, float* second);

// float32 from and to what crosses the link; rounding is to nearest, ties to even, NaNs stay NaNs.
void to_float(Dtype type, const void* values, std::size_t n, float* out);
void from_float(Dtype type, const float* values, std::size_t n, void* out);

// float32 to bfloat16, rounded up or down by dice, see dice.hpp.
void roll_to_bf16(const float* values, std::size_t n, std::uint32_t seed, std::uint32_t first,
                  void* out);

// A block of 8-bit moments, with signs or without; see blocks.hpp. Encoding gives the scale.
void decode_block(bool with_signs, const std::byte* codes, float scale, float* out);
float encode_block(bool with_signs, const float* values, std::uint32_t seed, std::uint32_t first,
                   std::byte* codes);

// Whether all are finite.
bool finite(const float* values, std::size_t n);

// Writes the places, ascending, of the values whose magnitude, as bits without the sign, is `least`
// or more, and gives how many. `places` has room for n and kSlack more.
inline constexpr std::size_t kSlack = 8;
std::size_t at_least(const float* values, std::size_t n, std::uint32_t least,
                     std::uint32_t* places);

// One level's functions, for kernels_*.cpp only.
struct Table {
  void (*update)(Kind, const Hyper&, Recipe, std::size_t, float*, const float*, float*, float*);
  void (*bf16_to_float)(const void*, std::size_t, float*);
  void (*f16_to_float)(const void*, std::size_t, float*);
  void (*float_to_bf16)(const float*, std::size_t, void*);
  void (*float_to_f16)(const float*, std::size_t, void*);
  void (*roll_to_bf16)(const float*, std::size_t, std::uint32_t, std::uint32_t, void*);
  void (*decode_block[2])(const unsigned char*, float, float*);  // by whether there are signs
  float (*encode_block[2])(const float*, std::uint32_t, std::uint32_t, unsigned char*);
  bool (*finite)(const float*, std::size_t);
  std::size_t (*at_least)(const float*, std::size_t, std::uint32_t, std::uint32_t*);
};
const Table* generic_table();
const Table* avx2_table();
const Table* avx512_table();

}  // namespace smart_infinity::kernels
