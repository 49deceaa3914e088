#include "compact_codebooks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "copy_parts.hpp"
#include "kernels.hpp"

namespace navis {
namespace {

constexpr std::size_t kCentroids = 256;
constexpr float kSteps = 127;
// Of what a squared distance between two rows may be off by rounding, relative to the variance
// within codebooks: PQ itself leaves out ten times that, and more.
constexpr double kTolerance = 0.01;

std::size_t up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

CompactCodebooks::CompactCodebooks(std::size_t subspaces, std::size_t width,
                                   std::span<const float> codebooks)
    : subspaces_(subspaces),
      part_bytes_(up(width, 4)),
      row_bytes_(up(subspaces * part_bytes_, kernels::kRowBytes)) {
  std::vector<float> least(subspaces * width);
  std::vector<double> variance(subspaces);
  float widest = 0;
  for (std::size_t m = 0; m < subspaces; ++m) {
    for (std::size_t j = 0; j < width; ++j) {
      const float* entry = codebooks.data() + m * kCentroids * width + j;
      float low = *entry, high = *entry;
      double sum = 0, squares = 0;
      for (std::size_t c = 0; c < kCentroids; ++c, entry += width) {
        low = std::min(low, *entry);
        high = std::max(high, *entry);
        sum += *entry;
        squares += static_cast<double>(*entry) * *entry;
      }
      least[m * width + j] = low;
      widest = std::max(widest, high - low);
      variance[m] += squares / kCentroids - sum / kCentroids * sum / kCentroids;
    }
  }
  const float step = widest > 0 ? widest / kSteps : 1.0F;
  square_ = step * step;
  // Of subspaces by the median one: a few of enormous spread shall not speak for the rest.
  std::nth_element(variance.begin(), variance.begin() + static_cast<std::ptrdiff_t>(subspaces / 2),
                   variance.end());
  const double rounding = static_cast<double>(width) * square_ / 6;  // two uniform errors an entry
  precise_ = std::isfinite(square_) && rounding <= kTolerance * variance[subspaces / 2];
  if (!precise_) return;
  entries_.resize(subspaces * kCentroids * part_bytes_);
  for (std::size_t m = 0; m < subspaces; ++m) {
    for (std::size_t c = 0; c < kCentroids; ++c) {
      for (std::size_t j = 0; j < width; ++j) {
        const std::size_t from = (m * kCentroids + c) * width + j;
        const float steps = std::round((codebooks[from] - least[m * width + j]) / step);
        entries_[(m * kCentroids + c) * part_bytes_ + j] =
            static_cast<std::byte>(std::min(steps, kSteps));
      }
    }
  }
}

void CompactCodebooks::decode(const std::uint8_t* code, std::byte* row) const {
  copy_parts(entries_.data(), part_bytes_ / 4, code, subspaces_, row);
  const std::size_t filled = subspaces_ * part_bytes_;
  std::memset(row + filled, 0, row_bytes_ - filled);
}

float CompactCodebooks::distance(const std::byte* a, const std::byte* b) const {
  return square_ * static_cast<float>(kernels::l2_of_rows(a, b, row_bytes_));
}

}  // namespace navis
