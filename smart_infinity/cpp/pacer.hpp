// A token bucket: how long to wait before so many more bytes keep to a rate. It is how one disk
// stands in for several slower ones; whoever measures with it says so.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>

namespace smart_infinity {

class Pacer {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Pacer(double bytes_per_s) : rate_(bytes_per_s) {}

  // Takes the tokens of a transfer; it may start at the time given back.
  Clock::time_point take(std::size_t bytes) {
    const auto now = Clock::now();
    if (rate_ <= 0) return now;
    // What was not used is lost but for a hundredth of a second, so that a pause makes no burst.
    next_ = std::max(next_, now - std::chrono::milliseconds(10));
    const auto start = next_;
    next_ += std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(static_cast<double>(bytes) / rate_));
    return start;
  }

 private:
  double rate_;
  Clock::time_point next_{};
};

}  // namespace smart_infinity
