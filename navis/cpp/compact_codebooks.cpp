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
// Vectors reach a little farther than their means.
constexpr float kMargin = 0.1F;
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
      width_(width),
      part_bytes_(up(width, 4)),
      row_bytes_(up(subspaces * part_bytes_, kernels::kRowBytes)) {
  least_.resize(subspaces * width);
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
      least_[m * width + j] = low;
      widest = std::max(widest, high - low);
      variance[m] += squares / kCentroids - sum / kCentroids * sum / kCentroids;
    }
  }
  step_ = widest > 0 ? widest * (1 + 2 * kMargin) / kSteps : 1.0F;
  for (float& low : least_) low -= widest * kMargin;
  // Of subspaces by the median one: a few of enormous spread shall not speak for the rest.
  std::nth_element(variance.begin(), variance.begin() + static_cast<std::ptrdiff_t>(subspaces / 2),
                   variance.end());
  // Two uniform errors an entry.
  const double rounding = static_cast<double>(width) * step_ * step_ / 6;
  precise_ = std::isfinite(step_ * step_) && rounding <= kTolerance * variance[subspaces / 2];
  if (!precise_) return;
  entries_.resize(subspaces * kCentroids * part_bytes_);
  for (std::size_t m = 0; m < subspaces; ++m) {
    for (std::size_t c = 0; c < kCentroids; ++c) {
      for (std::size_t j = 0; j < width; ++j) {
        const std::size_t from = (m * kCentroids + c) * width + j;
        const float steps = std::round((codebooks[from] - least_[m * width + j]) / step_);
        entries_[(m * kCentroids + c) * part_bytes_ + j] = static_cast<std::byte>(steps);
      }
    }
  }
}

void CompactCodebooks::decode(const std::uint8_t* code, std::byte* row) const {
  copy_parts(entries_.data(), part_bytes_ / 4, code, subspaces_, row);
  const std::size_t filled = subspaces_ * part_bytes_;
  std::memset(row + filled, 0, row_bytes_ - filled);
}

void CompactCodebooks::place(const float* vector, std::size_t dim, std::byte* row) const {
  std::memset(row, 0, row_bytes_);
  const float steps_each = 1 / step_;
  for (std::size_t m = 0, i = 0; m < subspaces_; ++m) {
    for (std::size_t j = 0; j < width_; ++j, ++i) {
      const float steps = ((i < dim ? vector[i] : 0.0F) - least_[i]) * steps_each + 0.5F;
      row[m * part_bytes_ + j] = static_cast<std::byte>(std::clamp(steps, 0.0F, kSteps));
    }
  }
}

float CompactCodebooks::distance(const std::byte* a, const std::byte* b) const {
  return step_ * step_ * static_cast<float>(kernels::l2_of_rows(a, b, row_bytes_));
}

}  // namespace navis
