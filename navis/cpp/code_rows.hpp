// Distances between codes, for one insert. What is decoded is kept, because the lists that an
// insert looks into name the same nodes over and over. Bounded: without room all is forgotten,
// which changes no result.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels.hpp"
#include "quantized.hpp"

namespace navis {

class CodeRows {
 public:
  // Forgets all. `table` is pq.table() of the newcomer; it and `quantized` are to outlive what is
  // asked next.
  void begin(const Quantized& quantized, const float* table) {
    quantized_ = &quantized;
    table_ = table;
    row_bytes_ = quantized.pq.row_bytes();
    forget();
  }

  // Room for so many more, whose rows then stay what they are until the next call.
  void make_room(std::size_t count) {
    if ((used_ + count) * row_bytes_ > kBytes) forget();
    const std::size_t most = used_ + count;
    if (rows_.size() < most * row_bytes_) rows_.resize(most * row_bytes_);
    if (to_newcomer_.size() < most) to_newcomer_.resize(most);
    if (places_.size() < 2 * most) grow(most);
  }

  // The row of a node, decoded if it was not there.
  std::size_t find(NodeId id) {
    Place& place = look_up(id);
    if (place.row == kNone) {
      place = {id, static_cast<std::uint32_t>(used_++)};
      const std::uint8_t* code = quantized_->code(id);
      quantized_->pq.row(code, rows_.data() + place.row * row_bytes_);
      kernels::adc(table_, quantized_->pq.subspaces(), &code, 1, &to_newcomer_[place.row]);
    }
    return place.row;
  }

  // A row of a vector as it is.
  std::size_t add(const float* vector) {
    quantized_->pq.row_of(vector, rows_.data() + used_ * row_bytes_);
    return used_++;
  }

  // Squared, from the newcomer's vector to a row's code.
  float to_newcomer(std::size_t row) const { return to_newcomer_[row]; }

  // Squared, between two rows.
  float distance(std::size_t a, std::size_t b) const {
    return quantized_->pq.row_distance(at(a), at(b));
  }

 private:
  static constexpr std::size_t kBytes = std::size_t{1} << 20U;
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  struct Place {
    NodeId id = kNoNode;
    std::uint32_t row = kNone;
  };

  const std::byte* at(std::size_t row) const { return rows_.data() + row * row_bytes_; }

  void forget() {
    std::fill(places_.begin(), places_.end(), Place{});
    used_ = 0;
  }

  Place& look_up(NodeId id) {
    const std::size_t mask = places_.size() - 1;
    std::size_t i = (id * 0x9E3779B1U) & mask;
    while (places_[i].row != kNone && places_[i].id != id) i = (i + 1) & mask;
    return places_[i];
  }

  void grow(std::size_t count) {
    std::size_t size = 64;
    while (size < 2 * count) size *= 2;
    std::vector<Place> before(size);
    before.swap(places_);
    for (const Place& place : before) {
      if (place.row != kNone) look_up(place.id) = place;
    }
  }

  const Quantized* quantized_ = nullptr;
  const float* table_ = nullptr;
  std::size_t row_bytes_ = 0;
  std::vector<std::byte> rows_;
  std::vector<float> to_newcomer_;
  std::vector<Place> places_;  // open addressing, at most half full; a power of two
  std::size_t used_ = 0;
};

}  // namespace navis
