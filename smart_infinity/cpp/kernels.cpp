#include "kernels.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace smart_infinity::kernels {
namespace {

const Table* table_of(Level level) { return level == Level::avx2 ? avx2_table() : generic_table(); }

Level chosen_by_environment() {
  const char* name = std::getenv("SMART_INFINITY_SIMD");
  if (name == nullptr || *name == '\0') {
    return supported(Level::avx2) ? Level::avx2 : Level::generic;
  }
  if (std::strcmp(name, "generic") == 0) return Level::generic;
  if (std::strcmp(name, "avx2") != 0) {
    throw Error(ErrorKind::environment, std::string("SMART_INFINITY_SIMD=") + name +
                                            " is unknown; use generic or avx2, or leave it unset");
  }
  if (!supported(Level::avx2)) {
    throw Error(ErrorKind::environment,
                "SMART_INFINITY_SIMD=avx2, but this processor or this build lacks AVX2, FMA or "
                "F16C");
  }
  return Level::avx2;
}

// Chosen at the first call and not before main, so that a bad SMART_INFINITY_SIMD is an Error that
// can be caught.
std::atomic<const Table*> current{nullptr};

const Table& table() {
  const Table* chosen = current.load(std::memory_order_relaxed);
  if (chosen == nullptr) {
    chosen = table_of(chosen_by_environment());
    current.store(chosen, std::memory_order_relaxed);
  }
  return *chosen;
}

}  // namespace

bool supported(Level level) {
  if (level == Level::generic) return true;
#if defined(__x86_64__) && defined(__GNUC__)
  return avx2_table() != nullptr && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

Level active() { return &table() == generic_table() ? Level::generic : Level::avx2; }

void use(Level level) {
  if (!supported(level)) {
    throw Error(ErrorKind::environment, "this processor or this build lacks AVX2, FMA or F16C");
  }
  current.store(table_of(level), std::memory_order_relaxed);
}

void update(Kind kind, const Hyper& hyper, Recipe recipe, std::size_t n, float* parameters,
            const float* gradients, float* first, float* second) {
  table().update(kind, hyper, recipe, n, parameters, gradients, first, second);
}

void to_float(Dtype type, const void* values, std::size_t n, float* out) {
  switch (type) {
    case Dtype::float32:
      if (n > 0) std::memcpy(out, values, n * sizeof(float));
      return;
    case Dtype::bfloat16:
      table().bf16_to_float(values, n, out);
      return;
    case Dtype::float16:
      table().f16_to_float(values, n, out);
      return;
  }
}

void from_float(Dtype type, const float* values, std::size_t n, void* out) {
  switch (type) {
    case Dtype::float32:
      if (n > 0) std::memcpy(out, values, n * sizeof(float));
      return;
    case Dtype::bfloat16:
      table().float_to_bf16(values, n, out);
      return;
    case Dtype::float16:
      table().float_to_f16(values, n, out);
      return;
  }
}

bool finite(const float* values, std::size_t n) { return table().finite(values, n); }

std::size_t at_least(const float* values, std::size_t n, std::uint32_t least,
                     std::uint32_t* places) {
  return table().at_least(values, n, least, places);
}

}  // namespace smart_infinity::kernels
