// Which units of a page file are in use. Nothing is overwritten that a checkpoint or a reader may
// still need: a unit that lost its last list is used again only after a checkpoint begun later has
// been completed (or if no checkpoint has begun since it was written), and after the readers of
// the time have left.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <set>
#include <vector>

#include "chunked.hpp"
#include "epoch.hpp"
#include "phases.hpp"
#include "types.hpp"

namespace navis {

class Units {
 public:
  explicit Units(Epochs& epochs) : epochs_(epochs) {}

  // After opening: counts[u] lists live in unit u; units of none are free.
  void load(const std::vector<std::uint32_t>& counts) {
    std::lock_guard lock(mutex_);
    grow(counts.size());
    for (std::size_t u = 0; u < counts.size(); ++u) {
      live_[u].store(counts[u], std::memory_order_relaxed);
      if (counts[u] == 0) {
        free_.insert(static_cast<std::uint32_t>(u));
      } else {
        ++used_;
      }
    }
  }

  // Units to write `count` times per_unit lists to, runs of neighbours first, or the lowest. They
  // count as in use from now on. Lists are added by moved_in, after the unit has been written;
  // settle() releases those that stayed empty.
  std::vector<std::uint32_t> allocate(std::size_t count, bool lowest = false) {
    std::lock_guard lock(mutex_);
    reclaim();
    std::vector<std::uint32_t> units;
    units.reserve(count);
    // A run long enough for all is one request to the disk; otherwise the lowest, so that the file
    // does not grow while it has holes.
    std::uint32_t start = 0, length = 0;
    for (const std::uint32_t u : free_) {
      if (lowest) break;
      if (length > 0 && u == start + length) {
        ++length;
      } else {
        start = u;
        length = 1;
      }
      if (length == count) break;
    }
    if (length == count) {
      for (std::uint32_t i = 0; i < length; ++i) units.push_back(start + i);
    } else {
      for (auto u = free_.begin(); u != free_.end() && units.size() < count; ++u) {
        units.push_back(*u);
      }
    }
    for (const std::uint32_t u : units) free_.erase(u);
    while (units.size() < count) {
      units.push_back(static_cast<std::uint32_t>(size_));
      grow(size_ + 1);
    }
    for (const std::uint32_t u : units) {
      born_[u] = phases_.now();
      ++used_;
    }
    return units;
  }
  void moved_in(std::uint32_t unit) { live_[unit].fetch_add(1, std::memory_order_relaxed); }
  void moved_out(std::uint32_t unit) {
    if (live_[unit].fetch_sub(1, std::memory_order_relaxed) == 1) retire(unit);
  }
  // Where nothing moved in after all.
  void settle(const std::vector<std::uint32_t>& units) {
    for (const std::uint32_t u : units) {
      if (live_[u].load(std::memory_order_relaxed) == 0) retire(u);
    }
  }
  std::uint32_t live(std::uint32_t unit) const {
    return live_[unit].load(std::memory_order_relaxed);
  }

  // A checkpoint's table is collected between these two; a failed one is not completed.
  void checkpoint_begins() {
    std::lock_guard lock(mutex_);
    phases_.begin();
  }
  void checkpoint_ends(bool completed) {
    std::lock_guard lock(mutex_);
    phases_.end(completed);
    reclaim();
  }

  std::size_t size() const {  // units in the file, used or not
    std::lock_guard lock(mutex_);
    return size_;
  }
  // Given up, but a checkpoint that still counts refers to them.
  std::size_t awaiting_checkpoint() const {
    std::lock_guard lock(mutex_);
    return awaiting_;
  }
  std::size_t used() const {
    std::lock_guard lock(mutex_);
    return used_;
  }
  // Forgets the free ones at the end of the file; gives the size.
  std::size_t shrink() {
    std::lock_guard lock(mutex_);
    reclaim();
    while (size_ > 0 && free_.erase(static_cast<std::uint32_t>(size_ - 1)) > 0) --size_;
    return size_;
  }

 private:
  struct Retired {
    std::uint32_t unit;
    std::uint64_t epoch;
    std::uint64_t phase;  // of the completed checkpoint that no longer names it; 0: none does
  };

  void grow(std::size_t size) {
    live_.grow(size);
    born_.grow(size);
    size_ = size;
  }
  void retire(std::uint32_t unit) {
    std::lock_guard lock(mutex_);
    const bool unseen = phases_.unseen(born_[unit]);
    retired_.push_back({unit, epochs_.retire(), unseen ? 0 : phases_.of_next()});
    --used_;
    if (!unseen) ++awaiting_;
  }
  void reclaim() {
    if (retired_.empty()) return;
    const std::uint64_t oldest = epochs_.oldest();
    std::erase_if(retired_, [&](const Retired& r) {
      if (r.epoch >= oldest || !phases_.reached(r.phase)) return false;
      free_.insert(r.unit);
      if (r.phase) --awaiting_;
      return true;
    });
  }

  Epochs& epochs_;
  mutable std::mutex mutex_;
  ChunkedRows<std::atomic<std::uint32_t>> live_;
  ChunkedRows<std::uint64_t> born_;  // phase when it was written
  std::set<std::uint32_t> free_;
  std::deque<Retired> retired_;
  std::size_t size_ = 0, used_ = 0, awaiting_ = 0;
  Phases phases_;
};

}  // namespace navis
