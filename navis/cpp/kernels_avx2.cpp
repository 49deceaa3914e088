// The one file compiled with -mavx2 -mfma -mf16c. It uses no inline function or template of another
// header: the linker keeps one copy of such a function for all files, and were it this file's, the
// whole program would need AVX2.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace navis::kernels {
namespace avx2 {
namespace {

// The first `count` < 8 lanes; the others are not touched in memory.
inline __m256i first_lanes(std::size_t count) {
  alignas(32) static constexpr std::int32_t kOnes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnes + 8 - count));
}

inline float total(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

struct SquaredDifference {
  static __m256 add(__m256 sum, __m256 a, __m256 b) {
    const __m256 difference = _mm256_sub_ps(a, b);
    return _mm256_fmadd_ps(difference, difference, sum);
  }
};

struct Product {
  static __m256 add(__m256 sum, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, sum); }
};

// Four sums, because one would wait for its own last addition.
template <class Term>
inline float reduce(const float* a, const float* b, std::size_t n) {
  __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    sum0 = Term::add(sum0, _mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
    sum1 = Term::add(sum1, _mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8));
    sum2 = Term::add(sum2, _mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16));
    sum3 = Term::add(sum3, _mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24));
  }
  for (; i + 8 <= n; i += 8) {
    sum0 = Term::add(sum0, _mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
  }
  if (i < n) {
    const __m256i lanes = first_lanes(n - i);
    sum1 = Term::add(sum1, _mm256_maskload_ps(a + i, lanes), _mm256_maskload_ps(b + i, lanes));
  }
  return total(_mm256_add_ps(_mm256_add_ps(sum0, sum1), _mm256_add_ps(sum2, sum3)));
}

float l2(const float* a, const float* b, std::size_t n) {
  return reduce<SquaredDifference>(a, b, n);
}

float dot(const float* a, const float* b, std::size_t n) { return reduce<Product>(a, b, n); }

// Eight stored values as floats.
struct Half {
  static constexpr std::size_t kBytes = 2;
  static __m256 load(const void* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
};

struct Unsigned {
  static constexpr std::size_t kBytes = 1;
  static __m256 load(const void* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadu_si64(from)));
  }
};

struct Signed {
  static constexpr std::size_t kBytes = 1;
  static __m256 load(const void* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
  }
};

template <class Stored>
inline void convert(const void* values, std::size_t n, float* out) {
  const char* from = static_cast<const char*>(values);
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, Stored::load(from + i * Stored::kBytes));
  if (i == n) return;
  alignas(16) char last[16] = {};
  for (std::size_t j = 0; j < (n - i) * Stored::kBytes; ++j) last[j] = from[i * Stored::kBytes + j];
  _mm256_maskstore_ps(out + i, first_lanes(n - i), Stored::load(last));
}

void f16_to_float(const void* values, std::size_t n, float* out) { convert<Half>(values, n, out); }

void u8_to_float(const std::uint8_t* values, std::size_t n, float* out) {
  convert<Unsigned>(values, n, out);
}

void i8_to_float(const std::int8_t* values, std::size_t n, float* out) {
  convert<Signed>(values, n, out);
}

void l2_to_256(const float* part, const float* transposed, std::size_t width, float* out) {
  for (std::size_t c = 0; c < 256; c += 32) {
    __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    const float* entries = transposed + c;
    for (std::size_t j = 0; j < width; ++j, entries += 256) {
      const __m256 entry = _mm256_broadcast_ss(part + j);
      sum0 = SquaredDifference::add(sum0, entry, _mm256_loadu_ps(entries));
      sum1 = SquaredDifference::add(sum1, entry, _mm256_loadu_ps(entries + 8));
      sum2 = SquaredDifference::add(sum2, entry, _mm256_loadu_ps(entries + 16));
      sum3 = SquaredDifference::add(sum3, entry, _mm256_loadu_ps(entries + 24));
    }
    _mm256_storeu_ps(out + c, sum0);
    _mm256_storeu_ps(out + c + 8, sum1);
    _mm256_storeu_ps(out + c + 16, sum2);
    _mm256_storeu_ps(out + c + 24, sum3);
  }
}

std::uint8_t argmin_256(const float* values) {
  __m256 least0 = _mm256_loadu_ps(values), least1 = _mm256_loadu_ps(values + 8);
  for (std::size_t i = 16; i < 256; i += 16) {
    least0 = _mm256_min_ps(least0, _mm256_loadu_ps(values + i));
    least1 = _mm256_min_ps(least1, _mm256_loadu_ps(values + i + 8));
  }
  __m256 least = _mm256_min_ps(least0, least1);
  least = _mm256_min_ps(least, _mm256_permute2f128_ps(least, least, 1));
  least = _mm256_min_ps(least, _mm256_permute_ps(least, 0x4E));
  least = _mm256_min_ps(least, _mm256_permute_ps(least, 0xB1));
  // A second look for where it stands is cheaper than to carry places along.
  for (std::size_t i = 0; i < 256; i += 8) {
    const int equal =
        _mm256_movemask_ps(_mm256_cmp_ps(least, _mm256_loadu_ps(values + i), _CMP_EQ_OQ));
    if (equal != 0) return static_cast<std::uint8_t>(i + __builtin_ctz(equal));
  }
  return 0;  // NaNs
}

std::uint32_t l2_of_rows(const std::byte* a, const std::byte* b, std::size_t bytes) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
  for (std::size_t i = 0; i < bytes; i += kRowBytes) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i));
    const __m256i apart = _mm256_abs_epi8(_mm256_sub_epi8(x, y));  // at most 127: no overflow
    const __m256i pairs = _mm256_maddubs_epi16(apart, apart);      // at most 2 * 127 * 127
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(half));
}

}  // namespace
}  // namespace avx2

const Table* avx2_table() {
  static constexpr Table table{.l2 = avx2::l2,
                               .dot = avx2::dot,
                               .f16_to_float = avx2::f16_to_float,
                               .u8_to_float = avx2::u8_to_float,
                               .i8_to_float = avx2::i8_to_float,
                               .l2_to_256 = avx2::l2_to_256,
                               .argmin_256 = avx2::argmin_256,
                               .l2_of_rows = avx2::l2_of_rows};
  return &table;
}

}  // namespace navis::kernels

#else

namespace navis::kernels {

const Table* avx2_table() { return nullptr; }

}  // namespace navis::kernels

#endif
