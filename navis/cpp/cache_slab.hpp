// The cache's memory: equal cells of u32, each an edge list with its header or a page of
// frequencies, so that one can be had for the other and the budget holds by construction. Internal.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

namespace navis::cache {

using Cell = std::uint32_t;  // from 1
inline constexpr Cell kNoCell = 0;

class Slab {
 public:
  // At most `entry_limit` of the cells are entries at a time.
  Slab(std::size_t cell_words, std::size_t cells, std::size_t entry_limit)
      : cell_words_(cell_words),
        cells_(cells),
        entry_limit_(entry_limit),
        // Not cleared, so that the system gives memory only as cells are first used.
        words_(std::make_unique_for_overwrite<std::uint32_t[]>(cell_words * cells)) {
    note_room();
  }

  std::uint32_t* at(Cell cell) { return words_.get() + (cell - 1) * cell_words_; }
  const std::uint32_t* at(Cell cell) const { return words_.get() + (cell - 1) * cell_words_; }

  // kNoCell where all are in use.
  Cell take_entry() {
    if (!has_room_.load(std::memory_order_relaxed)) return kNoCell;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (entries_ >= entry_limit_) return kNoCell;
    const Cell cell = take();
    if (cell != kNoCell) ++entries_;
    note_room();
    return cell;
  }
  Cell take_page() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Cell cell = take();
    if (cell != kNoCell) ++pages_;
    note_room();
    return cell;
  }
  // The entry in this cell is no more, and the cell becomes a page.
  void make_page() {
    const std::lock_guard<std::mutex> lock(mutex_);
    --entries_;
    ++pages_;
    note_room();
  }
  void give_entry(Cell cell) {
    const std::lock_guard<std::mutex> lock(mutex_);
    give(cell);
    --entries_;
    note_room();
  }
  // The page in this cell is no more.
  void give_page(Cell cell) {
    const std::lock_guard<std::mutex> lock(mutex_);
    give(cell);
    --pages_;
    note_room();
  }

  // Lets the last cells go, but for those in use, which the caller then empties: nobody is given
  // them any more.
  void lower(std::size_t cells) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (cells >= cells_) return;
    cells_ = cells;
    Cell kept = kNoCell;
    while (free_ != kNoCell) {
      const Cell cell = free_;
      free_ = *at(cell);
      if (!holds(cell)) continue;
      *at(cell) = kept;
      kept = cell;
    }
    free_ = kept;
    note_room();
  }
  bool holds(Cell cell) const { return cell <= cells_.load(std::memory_order_relaxed); }
  // Gives the system back what lies behind the last cell, where nothing is left.
  void release_rest() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto all = reinterpret_cast<std::uintptr_t>(words_.get());
    const auto first =
        (all + cells_ * cell_words_ * sizeof(std::uint32_t) + page - 1) / page * page;
    const auto last = (all + touched_ * cell_words_ * sizeof(std::uint32_t)) / page * page;
    if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    if (touched_ > cells_) touched_ = cells_;
  }
  std::size_t cell_bytes() const { return cell_words_ * sizeof(std::uint32_t); }
  std::size_t cells() const { return cells_.load(std::memory_order_relaxed); }

  std::size_t entries() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return entries_;
  }
  std::size_t capacity() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t room = pages_ < cells_ ? cells_ - pages_ : 0;
    return entry_limit_ < room ? entry_limit_ : room;
  }
  // Of cells that are or were in use.
  std::size_t bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return touched_ * cell_words_ * sizeof(std::uint32_t);
  }

 private:
  Cell take() {
    if (free_ != kNoCell) {
      const Cell cell = free_;
      free_ = *at(cell);
      return cell;
    }
    return touched_ < cells_ ? static_cast<Cell>(++touched_) : kNoCell;
  }
  void give(Cell cell) {
    if (!holds(cell)) return;
    *at(cell) = free_;
    free_ = cell;
  }
  void note_room() {
    has_room_.store(entries_ < entry_limit_ && (free_ != kNoCell || touched_ < cells_),
                    std::memory_order_relaxed);
  }

  const std::size_t cell_words_;
  std::atomic<std::size_t> cells_;
  const std::size_t entry_limit_;
  const std::unique_ptr<std::uint32_t[]> words_;
  mutable std::mutex mutex_;  // for what follows; taken inside a shard's, never the other way
  std::atomic<bool> has_room_ = false;  // spares the mutex once the cache is full
  Cell free_ = kNoCell;                 // a list through the cells' first words
  std::size_t touched_ = 0, entries_ = 0, pages_ = 0;
};

}  // namespace navis::cache
