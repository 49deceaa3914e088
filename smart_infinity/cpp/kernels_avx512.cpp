// The one file compiled with -mavx512f; see kernels_avx2.cpp for what it may take from others. Only
// updates gain from wider registers, what else there is is AVX2's.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__AVX512F__)

#include <immintrin.h>

namespace smart_infinity::kernels {
namespace avx512 {
namespace {

#include "recipes.inc"

struct Sixteen {
  static constexpr std::size_t kLanes = 16;
  __m512 lanes;
  static Sixteen load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Sixteen all(float value) { return {_mm512_set1_ps(value)}; }
  void store(float* to) const { _mm512_storeu_ps(to, lanes); }
  friend Sixteen operator+(Sixteen a, Sixteen b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
  friend Sixteen operator-(Sixteen a, Sixteen b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
  friend Sixteen operator*(Sixteen a, Sixteen b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
  friend Sixteen operator/(Sixteen a, Sixteen b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
  friend Sixteen sqrt(Sixteen a) { return {_mm512_sqrt_ps(a.lanes)}; }
  friend Sixteen fma(Sixteen a, Sixteen b, Sixteen c) {
    return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)};
  }
};

}  // namespace
}  // namespace avx512

const Table* avx512_table() {
  static const Table table = [] {
    Table with = *avx2_table();
    with.update = avx512::update_by<avx512::Two<avx512::Sixteen>>;
    return with;
  }();
  return &table;
}

}  // namespace smart_infinity::kernels

#else

namespace smart_infinity::kernels {

const Table* avx512_table() { return nullptr; }

}  // namespace smart_infinity::kernels

#endif
