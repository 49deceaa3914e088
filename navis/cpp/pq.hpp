// Product quantization: a vector as one byte per subspace. Training happens outside (faiss).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "compact_codebooks.hpp"

namespace navis {

class ProductQuantizer {
 public:
  // `codebooks` is subspaces x 256 x width floats with width = ceil(dim / subspaces): where dim is
  // no multiple of subspaces the vectors are padded with zeros at their end. Throws
  // Error(bad_input) when the sizes do not fit or a value is not finite.
  ProductQuantizer(std::size_t dim, std::size_t subspaces, std::vector<float> codebooks);

  std::size_t dim() const { return dim_; }
  std::size_t subspaces() const { return subspaces_; }  // = bytes of a code
  std::size_t width() const { return width_; }
  const std::vector<float>& codebooks() const { return codebooks_; }
  // Whether all centroids are zero, as before training: codes tell nothing.
  bool blank() const { return blank_; }

  // Nearest centroid per subspace, the lowest index on ties: the least of each row of table().
  void encode(const float* vector, std::uint8_t* code) const;
  // The same code from the vector's own table, which is most of the work.
  void encode_from_table(const float* table, std::uint8_t* code) const;
  // The chosen centroids one after the other, dim floats.
  void decode(const std::uint8_t* code, float* vector) const;
  // Squared distances from the query's parts to every centroid: subspaces x 256 floats.
  void table(const float* query, float* out) const;

  // Decoded codes in the form that gives distances between them at the least cost: 7-bit numbers
  // where those are precise enough, else floats.
  std::size_t row_bytes() const;
  void row(const std::uint8_t* code, std::byte* out) const;  // out: row_bytes(), aligned to 4
  void row_of(const float* vector, std::byte* out) const;    // of a vector as it is
  float row_distance(const std::byte* a, const std::byte* b) const;  // squared

 private:
  template <class UsePart>
  void for_each_part(const float* vector, UsePart&& use) const;

  std::size_t dim_, subspaces_, width_;
  std::vector<float> codebooks_;
  bool blank_ = true;
  std::optional<CompactCodebooks> compact_;
  std::vector<float> transposed_;  // subspaces x width x 256, as kernels::l2_to_256 wants it
};

}  // namespace navis
