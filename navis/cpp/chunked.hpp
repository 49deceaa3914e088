// Arrays by node that grow without moving, so that readers need no lock while a writer appends.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "types.hpp"

namespace navis {

// Rows of `width` values of T in chunks of 4,096 rows. grow() is the writer's (one at a time); a
// row may be read by anyone who learnt of it through something the writer did after growing.
template <class T>
class ChunkedRows {
 public:
  static constexpr std::size_t kLog = 12, kRows = std::size_t{1} << kLog;
  static constexpr std::size_t kChunks = std::size_t{1} << 18;  // 2^30 rows

  explicit ChunkedRows(std::size_t width = 1)
      : width_(width),
        // calloc: the directory is 2 MiB of address space, of memory only what is used.
        chunks_(static_cast<std::atomic<T*>*>(std::calloc(kChunks, sizeof(std::atomic<T*>)))) {
    if (!chunks_) throw std::bad_alloc();
  }
  ~ChunkedRows() {
    for (std::size_t c = 0; c < grown_; ++c) delete[] chunks_[c].load(std::memory_order_relaxed);
    std::free(chunks_);
  }
  ChunkedRows(const ChunkedRows&) = delete;
  ChunkedRows& operator=(const ChunkedRows&) = delete;

  void grow(std::size_t rows) {
    const std::size_t needed = (rows + kRows - 1) >> kLog;
    if (needed > kChunks) throw Error(ErrorKind::bad_input, "an index holds at most 2^30 vectors");
    for (; grown_ < needed; ++grown_) {
      chunks_[grown_].store(new T[kRows * width_](), std::memory_order_release);
    }
  }
  T* row(std::size_t i) {
    return chunks_[i >> kLog].load(std::memory_order_acquire) + (i & (kRows - 1)) * width_;
  }
  const T* row(std::size_t i) const {
    return chunks_[i >> kLog].load(std::memory_order_acquire) + (i & (kRows - 1)) * width_;
  }
  // The same, or row 0 where row i is in a chunk that was never grown.
  const T* row_or_first(std::size_t i) const {
    const T* chunk = chunks_[i >> kLog].load(std::memory_order_acquire);
    return chunk ? chunk + (i & (kRows - 1)) * width_ : row(0);
  }
  T& operator[](std::size_t i) { return *row(i); }
  const T& operator[](std::size_t i) const { return *row(i); }

  std::size_t width() const { return width_; }
  std::size_t memory_bytes() const { return grown_ * kRows * width_ * sizeof(T); }

 private:
  std::size_t width_, grown_ = 0;
  std::atomic<T*>* chunks_;
};

}  // namespace navis
