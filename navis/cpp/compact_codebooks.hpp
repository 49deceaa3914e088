// Codebooks in 7-bit numbers, for distances between codes: a quarter of the memory that decoding
// visits at random, and sums that are exact, the same at every level of SIMD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace navis {

class CompactCodebooks {
 public:
  // `codebooks` as ProductQuantizer has them: subspaces x 256 x width.
  CompactCodebooks(std::size_t subspaces, std::size_t width, std::span<const float> codebooks);

  // Whether rounding to 7 bits is small beside the spread of most subspaces. It is not where a few
  // entries are so far apart that one step of the scale swallows the others.
  bool precise() const { return precise_; }
  // Of a decoded row, in multiples of kernels::kRowBytes.
  std::size_t row_bytes() const { return row_bytes_; }
  void decode(const std::uint8_t* code, std::byte* row) const;
  // A vector of dim entries itself in the same numbers; what lies far outside is cut off.
  void place(const float* vector, std::size_t dim, std::byte* row) const;
  // Squared distance of two rows, in the units of the codebooks.
  float distance(const std::byte* a, const std::byte* b) const;

 private:
  std::size_t subspaces_, width_, part_bytes_, row_bytes_;
  float step_ = 1;
  bool precise_ = false;
  std::vector<float> least_;        // what 0 stands for, by entry of the vector
  std::vector<std::byte> entries_;  // subspaces x 256 x part_bytes_, parts filled up with equals
};

}  // namespace navis
