// A rate that a medium is slowed to: when so many more bytes have passed. It is how one disk stands
// in for several slower ones; whoever measures with it says so.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>

namespace smart_infinity {

class Pacer {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Pacer(double bytes_per_s) : rate_(bytes_per_s) {}

  // Begins a transfer behind those before it; gives the time at which it may be done. A pause saves
  // nothing up: a medium is no faster for having been idle.
  Clock::time_point take(std::size_t bytes) {
    const auto now = Clock::now();
    if (rate_ <= 0) return now;
    next_ = std::max(next_, now) +
            std::chrono::duration_cast<Clock::duration>(
                std::chrono::duration<double>(static_cast<double>(bytes) / rate_));
    return next_;
  }

 private:
  double rate_;
  Clock::time_point next_{};
};

}  // namespace smart_infinity
