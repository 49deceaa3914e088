#include "pq.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "copy_parts.hpp"
#include "kernels.hpp"
#include "types.hpp"

namespace navis {
namespace {

constexpr std::size_t kCentroids = 256;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(ErrorKind::bad_input, "product quantizer: " + why);
}

}  // namespace

ProductQuantizer::ProductQuantizer(std::size_t dim, std::size_t subspaces,
                                   std::vector<float> codebooks)
    : dim_(dim), subspaces_(subspaces), width_(0), codebooks_(std::move(codebooks)) {
  if (dim == 0) refuse("vectors of no dimension");
  if (subspaces == 0 || subspaces > dim) {
    refuse(std::to_string(subspaces) + " subspaces for " + std::to_string(dim) +
           " dimensions; use 1 to " + std::to_string(dim));
  }
  width_ = (dim + subspaces - 1) / subspaces;
  const std::size_t expected = subspaces * kCentroids * width_;
  if (codebooks_.size() != expected) {
    refuse("codebooks hold " + std::to_string(codebooks_.size()) + " floats; " +
           std::to_string(subspaces) + " subspaces x 256 x width " + std::to_string(width_) +
           " make " + std::to_string(expected));
  }
  const auto finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(codebooks_.begin(), codebooks_.end(), finite)) {
    refuse("codebooks hold a value that is not finite");
  }
  blank_ = std::all_of(codebooks_.begin(), codebooks_.end(), [](float v) { return v == 0; });
  if (CompactCodebooks compact(subspaces_, width_, codebooks_); compact.precise()) {
    compact_ = std::move(compact);
  }
  transposed_.resize(expected);
  for (std::size_t m = 0; m < subspaces_; ++m) {
    const float* from = codebooks_.data() + m * kCentroids * width_;
    float* to = transposed_.data() + m * kCentroids * width_;
    for (std::size_t c = 0; c < kCentroids; ++c) {
      for (std::size_t j = 0; j < width_; ++j) to[j * kCentroids + c] = from[c * width_ + j];
    }
  }
}

// use(m, part) for each subspace, the parts past the vector's end filled up with zeros.
template <class UsePart>
void ProductQuantizer::for_each_part(const float* vector, UsePart&& use) const {
  const std::size_t whole = dim_ / width_;
  for (std::size_t m = 0; m < whole; ++m) use(m, vector + m * width_);
  if (whole == subspaces_) return;
  std::vector<float> padded(width_);
  std::copy(vector + whole * width_, vector + dim_, padded.begin());
  use(whole, padded.data());
  std::fill(padded.begin(), padded.end(), 0.0F);
  for (std::size_t m = whole + 1; m < subspaces_; ++m) use(m, padded.data());
}

void ProductQuantizer::encode(const float* vector, std::uint8_t* code) const {
  float distances[kCentroids];
  for_each_part(vector, [&](std::size_t m, const float* part) {
    kernels::l2_to_256(part, transposed_.data() + m * kCentroids * width_, width_, distances);
    code[m] = kernels::argmin_256(distances);
  });
}

void ProductQuantizer::encode_from_table(const float* table, std::uint8_t* code) const {
  for (std::size_t m = 0; m < subspaces_; ++m) {
    code[m] = kernels::argmin_256(table + m * kCentroids);
  }
}

void ProductQuantizer::decode(const std::uint8_t* code, float* vector) const {
  const std::size_t whole = dim_ / width_;
  copy_parts(std::as_bytes(std::span(codebooks_)).data(), width_, code, whole,
             std::as_writable_bytes(std::span(vector, dim_)).data());
  if (const std::size_t rest = dim_ - whole * width_; rest > 0) {
    const float* entry = codebooks_.data() + (whole * kCentroids + code[whole]) * width_;
    std::copy_n(entry, rest, vector + whole * width_);
  }
}

std::size_t ProductQuantizer::row_bytes() const {
  return compact_ ? compact_->row_bytes() : dim_ * sizeof(float);
}

void ProductQuantizer::row(const std::uint8_t* code, std::byte* out) const {
  if (compact_) {
    compact_->decode(code, out);
  } else {
    decode(code, reinterpret_cast<float*>(out));
  }
}

void ProductQuantizer::row_of(const float* vector, std::byte* out) const {
  if (compact_) {
    compact_->place(vector, dim_, out);
  } else {
    std::memcpy(out, vector, dim_ * sizeof(float));
  }
}

float ProductQuantizer::row_distance(const std::byte* a, const std::byte* b) const {
  if (compact_) return compact_->distance(a, b);
  return kernels::l2(reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(b), dim_);
}

void ProductQuantizer::table(const float* query, float* out) const {
  for_each_part(query, [&](std::size_t m, const float* part) {
    kernels::l2_to_256(part, transposed_.data() + m * kCentroids * width_, width_,
                       out + m * kCentroids);
  });
}

}  // namespace navis
