#include "kernels.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace smart_infinity::kernels {
namespace {

const Table* table_of(Level level) {
  switch (level) {
    case Level::avx512:
      return avx512_table();
    case Level::avx2:
      return avx2_table();
    case Level::generic:
      break;
  }
  return generic_table();
}

void require_supported(Level level) {
  if (supported(level)) return;
  throw Error(ErrorKind::environment,
              std::string("SMART_INFINITY_SIMD=") + name_of(level) +
                  ", but this processor or this " + "build lacks " +
                  (level == Level::avx512 ? "AVX-512F" : "AVX2, FMA or F16C"));
}

Level chosen_by_environment() {
  const char* name = std::getenv("SMART_INFINITY_SIMD");
  if (name == nullptr || *name == '\0') {
    Level best = Level::generic;
    for (const Level level : kLevels) {
      if (supported(level)) best = level;
    }
    return best;
  }
  const Level level = level_named(name);
  require_supported(level);
  return level;
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

const char* name_of(Level level) {
  constexpr const char* kNames[] = {"generic", "avx2", "avx512"};
  return kNames[static_cast<int>(level)];
}

Level level_named(const std::string& name) {
  for (const Level level : kLevels) {
    if (name == name_of(level)) return level;
  }
  throw Error(ErrorKind::environment,
              "SMART_INFINITY_SIMD=" + name +
                  " is unknown; use generic, avx2 or avx512, or leave it unset");
}

bool supported(Level level) {
  if (level == Level::generic) return true;
#if defined(__x86_64__) && defined(__GNUC__)
  // The processor is asked first: even what gives a table is compiled for its level.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c") || avx2_table() == nullptr) {
    return false;
  }
  return level == Level::avx2 || (__builtin_cpu_supports("avx512f") && avx512_table() != nullptr);
#else
  return false;
#endif
}

Level active() {
  const Table* chosen = &table();
  for (const Level level : kLevels) {
    if (supported(level) && table_of(level) == chosen) return level;
  }
  return Level::generic;
}

void use(Level level) {
  require_supported(level);
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

void roll_to_bf16(const float* values, std::size_t n, std::uint32_t seed, std::uint32_t first,
                  void* out) {
  table().roll_to_bf16(values, n, seed, first, out);
}

void decode_block(bool with_signs, const std::byte* codes, float scale, float* out) {
  table().decode_block[with_signs](reinterpret_cast<const unsigned char*>(codes), scale, out);
}

float encode_block(bool with_signs, const float* values, std::uint32_t seed, std::uint32_t first,
                   std::byte* codes) {
  return table().encode_block[with_signs](values, seed, first,
                                          reinterpret_cast<unsigned char*>(codes));
}

bool finite(const float* values, std::size_t n) { return table().finite(values, n); }

std::size_t at_least(const float* values, std::size_t n, std::uint32_t least,
                     std::uint32_t* places) {
  return table().at_least(values, n, least, places);
}

}  // namespace smart_infinity::kernels
