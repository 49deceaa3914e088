#include "pq.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

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

namespace {

// A copy whose length the compiler knows is two instructions, not a call.
template <std::size_t Width>
void gather(const float* codebooks, const std::uint8_t* code, std::size_t parts, float* out) {
  for (std::size_t m = 0; m < parts; ++m) {
    std::memcpy(out + m * Width, codebooks + (m * kCentroids + code[m]) * Width,
                Width * sizeof(float));
  }
}

// By width, from 1.
constexpr auto kGathers = []<std::size_t... Less>(std::index_sequence<Less...>) {
  return std::array{&gather<Less + 1>...};
}(std::make_index_sequence<16>{});

}  // namespace

void ProductQuantizer::decode(const std::uint8_t* code, float* vector) const {
  const std::size_t whole = dim_ / width_;
  const float* books = codebooks_.data();
  if (width_ <= kGathers.size()) {
    kGathers[width_ - 1](books, code, whole, vector);
  } else {
    for (std::size_t m = 0; m < whole; ++m) {
      std::copy_n(books + (m * kCentroids + code[m]) * width_, width_, vector + m * width_);
    }
  }
  if (const std::size_t rest = dim_ - whole * width_; rest > 0) {
    std::copy_n(books + (whole * kCentroids + code[whole]) * width_, rest, vector + whole * width_);
  }
}

void ProductQuantizer::table(const float* query, float* out) const {
  for_each_part(query, [&](std::size_t m, const float* part) {
    kernels::l2_to_256(part, transposed_.data() + m * kCentroids * width_, width_,
                       out + m * kCentroids);
  });
}

}  // namespace navis
