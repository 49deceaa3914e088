// The one file compiled with -mavx2 -mfma -mf16c. What it takes from other files is declarations,
// or in its own anonymous namespace: see recipes.inc.
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

void update(Kind kind, const Hyper& hyper, Recipe recipe, std::size_t n, float* parameters,
            const float* gradients, float* first, float* second) {
  const std::size_t whole = n / Eight::kLanes * Eight::kLanes;
  steps<Eight>(kind, hyper, recipe, 0, whole, parameters, gradients, first, second);
  steps<One>(kind, hyper, recipe, whole, n, parameters, gradients, first, second);
}

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

}  // namespace
}  // namespace avx2

const Table* avx2_table() {
  static constexpr Table table{.update = avx2::update,
                               .bf16_to_float = avx2::bf16_to_float,
                               .f16_to_float = avx2::f16_to_float,
                               .float_to_bf16 = avx2::float_to_bf16,
                               .float_to_f16 = avx2::float_to_f16,
                               .finite = avx2::finite};
  return &table;
}

}  // namespace smart_infinity::kernels

#else

namespace smart_infinity::kernels {

const Table* avx2_table() { return nullptr; }

}  // namespace smart_infinity::kernels

#endif
