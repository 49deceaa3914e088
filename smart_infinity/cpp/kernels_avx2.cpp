// The one file compiled with -mavx2 -mfma -mf16c. What it takes from other files is declarations,
// or in its own anonymous namespace: see recipes.inc.
#include "blocks.hpp"
#include "dice.hpp"
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace smart_infinity::kernels {
namespace avx2 {
namespace {

#include "recipes.inc"

struct Eight {
  static constexpr std::size_t kLanes = 8;
  __m256 lanes;
  static Eight load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Eight all(float value) { return {_mm256_set1_ps(value)}; }
  void store(float* to) const { _mm256_storeu_ps(to, lanes); }
  friend Eight operator+(Eight a, Eight b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
  friend Eight operator-(Eight a, Eight b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
  friend Eight operator*(Eight a, Eight b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
  friend Eight operator/(Eight a, Eight b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
  friend Eight sqrt(Eight a) { return {_mm256_sqrt_ps(a.lanes)}; }
  friend Eight fma(Eight a, Eight b, Eight c) {
    return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)};
  }
};

// Eight at a time, the last ones through a buffer.
template <class Convert>
void eights(std::size_t n, const char* from, std::size_t from_bytes, char* to, std::size_t to_bytes,
            Convert convert) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) convert(from + i * from_bytes, to + i * to_bytes);
  if (i == n) return;
  alignas(32) char in[32] = {};
  alignas(32) char out[32] = {};
  for (std::size_t j = 0; j < (n - i) * from_bytes; ++j) in[j] = from[i * from_bytes + j];
  convert(in, out);
  for (std::size_t j = 0; j < (n - i) * to_bytes; ++j) to[i * to_bytes + j] = out[j];
}

__m128i load8(const char* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

void bf16_to_float(const void* values, std::size_t n, float* out) {
  eights(n, static_cast<const char*>(values), 2, reinterpret_cast<char*>(out), 4,
         [](const char* from, char* to) {
           const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load8(from)), 16);
           _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
         });
}

void f16_to_float(const void* values, std::size_t n, float* out) {
  eights(n, static_cast<const char*>(values), 2, reinterpret_cast<char*>(out), 4,
         [](const char* from, char* to) {
           _mm256_storeu_ps(reinterpret_cast<float*>(to), _mm256_cvtph_ps(load8(from)));
         });
}

void float_to_bf16(const float* values, std::size_t n, void* out) {
  eights(n, reinterpret_cast<const char*>(values), 4, static_cast<char*>(out), 2,
         [](const char* from, char* to) {
           const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
           const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
           __m256i half = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF));
           half = _mm256_srli_epi32(_mm256_add_epi32(half, even), 16);
           const __m256 value = _mm256_castsi256_ps(bits);
           const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
           half = _mm256_blendv_epi8(half, _mm256_set1_epi32(0x7FC0), nan);
           half = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08);
           _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(half));
         });
}

void float_to_f16(const float* values, std::size_t n, void* out) {
  eights(n, reinterpret_cast<const char*>(values), 4, static_cast<char*>(out), 2,
         [](const char* from, char* to) {
           const __m256 eight = _mm256_loadu_ps(reinterpret_cast<const float*>(from));
           _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                            _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT));
         });
}

bool finite(const float* values, std::size_t n) {
  const __m256i exponent = _mm256_set1_epi32(0x7F800000);
  __m256i any = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    any = _mm256_or_si256(any, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
  }
  if (_mm256_movemask_epi8(any) != 0) return false;
  for (; i < n; ++i) {
    if (!__builtin_isfinite(values[i])) return false;
  }
  return true;
}

// Of each mask of eight lanes, the numbers of its set lanes, one after the other.
struct Packings {
  alignas(8) std::uint8_t lanes[256][8];
};

constexpr Packings packings() {
  Packings all{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    unsigned count = 0;
    for (unsigned lane = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1U) != 0) all.lanes[mask][count++] = static_cast<std::uint8_t>(lane);
    }
  }
  return all;
}

constexpr Packings kPackings = packings();

std::size_t at_least(const float* values, std::size_t n, std::uint32_t least,
                     std::uint32_t* places) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  const __m256i below = _mm256_set1_epi32(static_cast<int>(least) - 1);
  std::size_t found = 0;
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {  // all eight are stored: no branch on what is rare but not very
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    const __m256i hits = _mm256_cmpgt_epi32(_mm256_and_si256(bits, magnitude), below);
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(hits)));
    const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPackings.lanes[mask]));
    const __m256i at =
        _mm256_add_epi32(_mm256_cvtepu8_epi32(lanes), _mm256_set1_epi32(static_cast<int>(i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + found), at);
    found += static_cast<unsigned>(__builtin_popcount(mask));
  }
  for (; i < n; ++i) {
    places[found] = static_cast<std::uint32_t>(i);
    found += (__builtin_bit_cast(std::uint32_t, values[i]) & 0x7FFFFFFFU) >= least ? 1 : 0;
  }
  return found;
}

}  // namespace
}  // namespace avx2

const Table* avx2_table() {
  static constexpr Table table{.update = avx2::update_by<avx2::Two<avx2::Eight>>,
                               .bf16_to_float = avx2::bf16_to_float,
                               .f16_to_float = avx2::f16_to_float,
                               .float_to_bf16 = avx2::float_to_bf16,
                               .float_to_f16 = avx2::float_to_f16,
                               .roll_to_bf16 = dice::float_to_bf16,
                               .decode_block = {blocks::decode<false>, blocks::decode<true>},
                               .encode_block = {blocks::encode<false>, blocks::encode<true>},
                               .finite = avx2::finite,
                               .at_least = avx2::at_least};
  return &table;
}

}  // namespace smart_infinity::kernels

#else

namespace smart_infinity::kernels {

const Table* avx2_table() { return nullptr; }

}  // namespace smart_infinity::kernels

#endif
