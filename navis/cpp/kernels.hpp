// Distances, conversions and table look-ups; one portable version and one for AVX2+FMA+F16C, chosen
// at run time. NAVIS_SIMD=generic|avx2 overrides the choice (an unknown or unsupported value is an
// Error of kind environment).
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.hpp"

namespace navis::kernels {

enum class Level : std::uint8_t { generic, avx2 };

bool supported(Level level);
Level active();
// For tests: use this level from now on.
void use(Level level);

// Squared Euclidean distance and inner product of two float vectors of n entries (no alignment
// needed).
float l2(const float* a, const float* b, std::size_t n);
float dot(const float* a, const float* b, std::size_t n);

// Squared Euclidean distance of two rows of numbers from 0 to 127; `bytes` is a multiple of
// kRowBytes. Exact.
inline constexpr std::size_t kRowBytes = 32;
std::uint32_t l2_of_rows(const std::byte* a, const std::byte* b, std::size_t bytes);

// n stored values as floats.
void to_float(DataType type, const void* values, std::size_t n, float* out);

// Asymmetric distances by table look-up. `table` is subspaces x 256 floats; the code of row i is
// codes[i] (pointers, because rows live in chunks); out[i] = sum over m of table[m][codes[i][m]].
// Prefetches the rows ahead. The same at every level, bit for bit.
void adc(const float* table, std::size_t subspaces, const std::uint8_t* const* codes,
         std::size_t count, float* out);

// Squared distances from one part of `width` entries to 256 centroids held transposed, entry j of
// centroid c at transposed[j * 256 + c], so that a register holds one entry of many centroids.
void l2_to_256(const float* part, const float* transposed, std::size_t width, float* out);

// Where the least of 256 values stands, the lowest index on ties.
std::uint8_t argmin_256(const float* values);

// One level's functions, as above; for kernels*.cpp only. The file of a level that was not compiled
// for this processor family answers nullptr.
struct Table {
  float (*l2)(const float*, const float*, std::size_t);
  float (*dot)(const float*, const float*, std::size_t);
  void (*f16_to_float)(const void*, std::size_t, float*);
  void (*u8_to_float)(const std::uint8_t*, std::size_t, float*);
  void (*i8_to_float)(const std::int8_t*, std::size_t, float*);
  void (*l2_to_256)(const float*, const float*, std::size_t, float*);
  std::uint8_t (*argmin_256)(const float*);
  std::uint32_t (*l2_of_rows)(const std::byte*, const std::byte*, std::size_t);
};
const Table* generic_table();
const Table* avx2_table();

}  // namespace navis::kernels
