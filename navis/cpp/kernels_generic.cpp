#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels.hpp"

namespace navis::kernels {
namespace generic {
namespace {

// Sums over this many independent lanes: without leave to reorder a sum the compiler cannot make
// the lanes itself, given them it uses whatever registers the baseline has.
constexpr std::size_t kLanes = 16;

float total(const float* lanes) {
  float sum = 0;
  for (std::size_t j = 0; j < kLanes / 2; ++j) sum += lanes[j] + lanes[j + kLanes / 2];
  return sum;
}

float l2(const float* a, const float* b, std::size_t n) {
  float lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float difference = a[i + j] - b[i + j];
      lanes[j] += difference * difference;
    }
  }
  for (std::size_t j = 0; i < n; ++i, ++j) {
    const float difference = a[i] - b[i];
    lanes[j] += difference * difference;
  }
  return total(lanes);
}

float dot(const float* a, const float* b, std::size_t n) {
  float lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (std::size_t j = 0; i < n; ++i, ++j) lanes[j] += a[i] * b[i];
  return total(lanes);
}

// Bit for bit what F16C gives, quieted NaNs included.
float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in a float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  if (exponent == 0x1F) {
    const std::uint32_t quiet = mantissa == 0 ? 0 : 0x400000U;
    return std::bit_cast<float>(sign | 0x7F800000U | quiet | (mantissa << 13));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

void f16_to_float(const void* values, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t half;  // file contents: perhaps at an odd address
    std::memcpy(&half, static_cast<const char*>(values) + 2 * i, sizeof half);
    out[i] = half_to_float(half);
  }
}

template <class Integer>
void integers_to_float(const Integer* values, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(values[i]);
}

void l2_to_256(const float* part, const float* transposed, std::size_t width, float* out) {
  std::fill_n(out, 256, 0.0F);
  for (std::size_t j = 0; j < width; ++j) {
    const float* entries = transposed + j * 256;
    for (std::size_t c = 0; c < 256; ++c) {
      const float difference = part[j] - entries[c];
      out[c] += difference * difference;
    }
  }
}

std::uint8_t argmin_256(const float* values) {
  return static_cast<std::uint8_t>(std::min_element(values, values + 256) - values);
}

std::uint32_t l2_of_rows(const std::byte* a, const std::byte* b, std::size_t bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes; ++i) {
    const int difference = std::to_integer<int>(a[i]) - std::to_integer<int>(b[i]);
    sum += static_cast<std::uint32_t>(difference * difference);
  }
  return sum;
}

}  // namespace
}  // namespace generic

const Table* generic_table() {
  static constexpr Table table{.l2 = generic::l2,
                               .dot = generic::dot,
                               .f16_to_float = generic::f16_to_float,
                               .u8_to_float = generic::integers_to_float<std::uint8_t>,
                               .i8_to_float = generic::integers_to_float<std::int8_t>,
                               .l2_to_256 = generic::l2_to_256,
                               .argmin_256 = generic::argmin_256,
                               .l2_of_rows = generic::l2_of_rows};
  return &table;
}

}  // namespace navis::kernels
