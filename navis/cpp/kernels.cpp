#include "kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace navis::kernels {
namespace {

const Table* table_of(Level level) { return level == Level::avx2 ? avx2_table() : generic_table(); }

Level chosen_by_environment() {
  const char* name = std::getenv("NAVIS_SIMD");
  if (name == nullptr || *name == '\0') {
    return supported(Level::avx2) ? Level::avx2 : Level::generic;
  }
  if (std::strcmp(name, "generic") == 0) return Level::generic;
  if (std::strcmp(name, "avx2") != 0) {
    throw Error(ErrorKind::environment, std::string("NAVIS_SIMD=") + name +
                                            " is unknown; use generic or avx2, or leave it unset");
  }
  if (!supported(Level::avx2)) {
    throw Error(ErrorKind::environment,
                "NAVIS_SIMD=avx2, but this processor or this build lacks AVX2, FMA or F16C");
  }
  return Level::avx2;
}

// Chosen at the first call and not before main, so that a bad NAVIS_SIMD is an Error that can be
// caught. The tables are constants, so a relaxed load is enough.
std::atomic<const Table*> current{nullptr};

const Table& table() {
  const Table* chosen = current.load(std::memory_order_relaxed);
  if (chosen == nullptr) {
    chosen = table_of(chosen_by_environment());
    current.store(chosen, std::memory_order_relaxed);
  }
  return *chosen;
}

void prefetch(const std::uint8_t* code, std::size_t bytes) {
#if defined(__GNUC__)
  for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(code + line);
  if (bytes > 1) __builtin_prefetch(code + bytes - 1);  // its line, where the code straddles
#else
  (void)code, (void)bytes;
#endif
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

float l2(const float* a, const float* b, std::size_t n) { return table().l2(a, b, n); }

float dot(const float* a, const float* b, std::size_t n) { return table().dot(a, b, n); }

std::uint32_t l2_of_rows(const std::byte* a, const std::byte* b, std::size_t bytes) {
  return table().l2_of_rows(a, b, bytes);
}

void to_float(DataType type, const void* values, std::size_t n, float* out) {
  switch (type) {
    case DataType::float32:
      if (n != 0) std::memcpy(out, values, n * sizeof(float));
      return;
    case DataType::float16:
      table().f16_to_float(values, n, out);
      return;
    case DataType::uint8:
      table().u8_to_float(static_cast<const std::uint8_t*>(values), n, out);
      return;
    case DataType::int8:
      table().i8_to_float(static_cast<const std::int8_t*>(values), n, out);
      return;
  }
}

// Plain look-ups: AVX2's gather was no faster where it was measured (Zen 4: 23 against 23 ns a row
// of 32, 74 against 66 of 96, rows out of cache), and processors patched for Downfall make it slow.
// What counts is to ask for the rows before they are needed.
void adc(const float* lookup, std::size_t subspaces, const std::uint8_t* const* codes,
         std::size_t count, float* out) {
  const std::size_t ahead = subspaces <= 64 ? 8 : 4;  // about as many lines as a core can await
  for (std::size_t i = 0; i < std::min(ahead, count); ++i) prefetch(codes[i], subspaces);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + ahead < count) prefetch(codes[i + ahead], subspaces);
    const std::uint8_t* code = codes[i];
    float sums[4] = {};
    std::size_t m = 0;
    for (; m + 4 <= subspaces; m += 4) {
      const float* rows = lookup + m * 256;
      for (std::size_t j = 0; j < 4; ++j) sums[j] += rows[j * 256 + code[m + j]];
    }
    for (; m < subspaces; ++m) sums[0] += lookup[m * 256 + code[m]];
    out[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

void l2_to_256(const float* part, const float* transposed, std::size_t width, float* out) {
  table().l2_to_256(part, transposed, width, out);
}

std::uint8_t argmin_256(const float* values) { return table().argmin_256(values); }

}  // namespace navis::kernels
