// How fast writers may use the disk for what nobody waits for: changed lists and vectors on their
// way to pages, checkpoints, compaction. The log is not among it: callers wait for that. In small
// portions, so that a search's read waits for one of them and not for a whole flush.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

namespace navis {

// A token bucket of bytes; safe to use from many threads.
class IoBudget {
 public:
  // What is written, or read in the background, as one request at most.
  static constexpr std::uint64_t kPortion = 128 * 1024;

  // Bytes per second; 0: no limit.
  explicit IoBudget(std::uint64_t rate)
      : rate_(static_cast<double>(rate)), burst_(std::max(rate_ / 100, 2.0 * kPortion)) {}

  // Waits until there are tokens for this many bytes. The bucket may be overdrawn by one request,
  // so that one larger than the burst is not waited for forever.
  void take(std::uint64_t bytes) {
    if (rate_ <= 0) return;
    Clock::duration wait{};
    {
      std::lock_guard lock(mutex_);
      const auto now = Clock::now();
      const double passed = std::chrono::duration<double>(now - last_).count();
      last_ = now;
      tokens_ = std::min(burst_, tokens_ + passed * rate_) - static_cast<double>(bytes);
      if (tokens_ < 0) {
        wait = std::chrono::duration_cast<Clock::duration>(
            std::chrono::duration<double>(-tokens_ / rate_));
      }
      taken_ += bytes;
      waited_ += wait;
    }
    if (wait > Clock::duration{}) std::this_thread::sleep_for(wait);
  }

  std::uint64_t taken() const {
    std::lock_guard lock(mutex_);
    return taken_;
  }
  double waited_s() const {
    std::lock_guard lock(mutex_);
    return std::chrono::duration<double>(waited_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;

  const double rate_, burst_;  // bytes per second, bytes
  mutable std::mutex mutex_;
  double tokens_ = 0;
  Clock::time_point last_ = Clock::now();
  std::uint64_t taken_ = 0;
  Clock::duration waited_{};
};

}  // namespace navis
