// A set of small numbers, one bit each.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace navis {

class Bits {
 public:
  Bits() = default;
  explicit Bits(std::size_t size) { resize(size); }

  // Numbers are below this. Growing adds none; shrinking takes those at the end out.
  void resize(std::size_t size) {
    for (std::size_t i = next(size); i < size_; i = next(i + 1)) clear(i);
    words_.resize((size + 63) / 64, 0);
    size_ = size;
  }
  std::size_t size() const { return size_; }
  std::size_t count() const { return count_; }

  bool test(std::size_t i) const { return i < size_ && (words_[i / 64] >> (i % 64) & 1U); }
  bool set(std::size_t i) {  // true when it was not there
    const std::uint64_t bit = std::uint64_t{1} << (i % 64);
    if (words_[i / 64] & bit) return false;
    words_[i / 64] |= bit;
    ++count_;
    lowest_ = std::min(lowest_, i / 64);
    return true;
  }
  void clear(std::size_t i) {
    const std::uint64_t bit = std::uint64_t{1} << (i % 64);
    if ((words_[i / 64] & bit) == 0) return;
    words_[i / 64] &= ~bit;
    --count_;
  }

  // The first at or behind `from`, or size(). From 0 on, what lies before the lowest is skipped.
  std::size_t next(std::size_t from) const {
    if (count_ == 0 || from >= size_) return size_;
    std::size_t word = std::max(from / 64, lowest_);
    std::uint64_t left = words_[word];
    if (word == from / 64) left &= ~std::uint64_t{0} << (from % 64);
    while (left == 0) {
      if (++word == words_.size()) return size_;
      left = words_[word];
    }
    if (from == 0) lowest_ = word;
    return word * 64 + static_cast<std::size_t>(std::countr_zero(left));
  }
  // The first at or behind `from` that is not there, or size().
  std::size_t next_absent(std::size_t from) const {
    while (from < size_) {
      std::uint64_t left = ~words_[from / 64] & (~std::uint64_t{0} << (from % 64));
      if (left != 0) {
        return std::min(size_, from / 64 * 64 + static_cast<std::size_t>(std::countr_zero(left)));
      }
      from = from / 64 * 64 + 64;
    }
    return size_;
  }
  // The first at or behind `from` that `other`, of the same size, does not have, or size().
  std::size_t next_without(const Bits& other, std::size_t from) const {
    for (std::size_t word = from / 64; word < words_.size(); ++word) {
      std::uint64_t left = words_[word] & ~other.words_[word];
      if (word == from / 64) left &= ~std::uint64_t{0} << (from % 64);
      if (left != 0) return word * 64 + static_cast<std::size_t>(std::countr_zero(left));
    }
    return size_;
  }
  std::size_t memory_bytes() const { return words_.capacity() * sizeof(std::uint64_t); }

 private:
  std::vector<std::uint64_t> words_;
  std::size_t size_ = 0, count_ = 0;
  mutable std::size_t lowest_ = 0;  // words before it are empty
};

}  // namespace navis
