// Which places of vectors.dat are in use. Like a unit of edge lists, a slot is written again only
// when no checkpoint that counts and no reader can ask for the vector it held: after a checkpoint
// begun later has been completed, and after the readers of the time have left. (Its page may be
// written at any time: the bytes of the others in it stay the same.)
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "bits.hpp"
#include "epoch.hpp"
#include "phases.hpp"

namespace navis {

class VectorSlots {
 public:
  explicit VectorSlots(Epochs& epochs) : epochs_(epochs) {}

  // After opening, or building: all below `size` but these are free.
  template <class Each>
  void load(std::size_t size, Each&& each_used) {
    std::lock_guard lock(mutex_);
    free_.resize(size);
    for (std::size_t i = 0; i < size; ++i) free_.set(i);
    each_used([&](std::uint32_t slot) { free_.clear(slot); });
    used_ = size - free_.count();
  }

  // Slots for `count` vectors, ascending: the lowest free ones, then new ones at the end.
  std::vector<std::uint32_t> allocate(std::size_t count) {
    std::lock_guard lock(mutex_);
    std::vector<std::uint32_t> slots = take(count, free_.size());
    while (slots.size() < count) {
      slots.push_back(static_cast<std::uint32_t>(free_.size()));
      free_.resize(free_.size() + 1);
      ++used_;
    }
    return slots;
  }
  // The same of free ones below `limit` only: fewer where there are not so many.
  std::vector<std::uint32_t> allocate_below(std::size_t count, std::size_t limit) {
    std::lock_guard lock(mutex_);
    return take(count, limit);
  }
  // Allocated and never given to a node.
  void cancel(const std::vector<std::uint32_t>& slots) {
    std::lock_guard lock(mutex_);
    for (const std::uint32_t slot : slots) free_.set(slot);
    used_ -= slots.size();
  }
  // No node has its vector there any more.
  void release(std::vector<std::uint32_t> slots) {
    if (slots.empty()) return;
    std::lock_guard lock(mutex_);
    used_ -= slots.size();
    retired_.push_back({std::move(slots), epochs_.retire(), phases_.of_next()});
  }

  void checkpoint_begins() {
    std::lock_guard lock(mutex_);
    phases_.begin();
  }
  void checkpoint_ends(bool completed) {
    std::lock_guard lock(mutex_);
    phases_.end(completed);
  }

  std::size_t used() const {
    std::lock_guard lock(mutex_);
    return used_;
  }
  std::size_t size() const {  // slots of the file, used or not
    std::lock_guard lock(mutex_);
    return free_.size();
  }
  // Forgets the free ones at the end of the file; gives the size.
  std::size_t shrink() {
    std::lock_guard lock(mutex_);
    reclaim();
    std::size_t size = free_.size();
    while (size > 0 && free_.test(size - 1)) --size;
    free_.resize(size);
    return size;
  }

 private:
  struct Retired {
    std::vector<std::uint32_t> slots;
    std::uint64_t epoch;
    std::uint64_t phase;  // of the completed checkpoint that no longer names them
  };

  std::vector<std::uint32_t> take(std::size_t count, std::size_t limit) {
    reclaim();
    std::vector<std::uint32_t> slots;
    slots.reserve(count);
    while (slots.size() < count) {
      const std::size_t slot = free_.next(0);
      if (slot >= std::min(limit, free_.size())) break;
      free_.clear(slot);
      slots.push_back(static_cast<std::uint32_t>(slot));
    }
    used_ += slots.size();
    return slots;
  }
  void reclaim() {
    while (!retired_.empty() && phases_.reached(retired_.front().phase) &&
           epochs_.passed(retired_.front().epoch)) {
      for (const std::uint32_t slot : retired_.front().slots) free_.set(slot);
      retired_.pop_front();
    }
  }

  Epochs& epochs_;
  mutable std::mutex mutex_;
  Bits free_;
  std::deque<Retired> retired_;
  std::size_t used_ = 0;
  Phases phases_;
};

}  // namespace navis
