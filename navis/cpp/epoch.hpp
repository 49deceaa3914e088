// Epoch-based reclamation: what readers may still be looking at is freed only after they have left.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

namespace navis {

class Epochs {
 public:
  static constexpr std::size_t kReaders = 1024;  // traversals in flight at once

  Epochs() : readers_(new std::atomic<std::uint64_t>[kReaders]) {
    for (std::size_t i = 0; i < kReaders; ++i) readers_[i].store(0, std::memory_order_relaxed);
  }

  class Guard {
   public:
    Guard() = default;
    explicit Guard(Epochs& epochs) : epochs_(&epochs), slot_(epochs.enter()) {}
    Guard(Guard&& other) noexcept
        : epochs_(std::exchange(other.epochs_, nullptr)), slot_(other.slot_) {}
    Guard& operator=(Guard&& other) noexcept {
      release();
      epochs_ = std::exchange(other.epochs_, nullptr);
      slot_ = other.slot_;
      return *this;
    }
    ~Guard() { release(); }
    void release() {
      if (epochs_) epochs_->readers_[slot_].store(0, std::memory_order_release);
      epochs_ = nullptr;
    }

   private:
    Epochs* epochs_ = nullptr;
    std::size_t slot_ = 0;
  };

  Guard enter_guard() { return Guard(*this); }

  // The stamp of something just unlinked: it may go when `passed(stamp)`.
  std::uint64_t retire() { return now_.fetch_add(1, std::memory_order_seq_cst); }
  // Whether every reader that was there at the stamp has left.
  bool passed(std::uint64_t stamp) const { return stamp < oldest(); }
  std::uint64_t oldest() const {
    std::uint64_t lowest = now_.load(std::memory_order_seq_cst);
    for (std::size_t i = 0; i < kReaders; ++i) {
      const std::uint64_t seen = readers_[i].load(std::memory_order_seq_cst);
      if (seen != 0 && seen < lowest) lowest = seen;
    }
    return lowest;
  }

 private:
  std::size_t enter() {
    std::size_t slot = hint_.fetch_add(1, std::memory_order_relaxed) % kReaders;
    for (std::size_t tried = 0;; ++tried) {
      std::uint64_t empty = 0;
      const std::uint64_t now = now_.load(std::memory_order_seq_cst);
      if (readers_[slot].compare_exchange_strong(empty, now, std::memory_order_seq_cst)) {
        // The epoch may have moved between the load and the store; the older stamp only delays
        // reclamation.
        return slot;
      }
      slot = (slot + 1) % kReaders;
      if (tried % kReaders == kReaders - 1) std::this_thread::yield();
    }
  }

  std::unique_ptr<std::atomic<std::uint64_t>[]> readers_;
  std::atomic<std::uint64_t> now_{1};
  std::atomic<std::size_t> hint_{0};
};

}  // namespace navis
