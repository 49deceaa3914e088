// Draws step times from a profile's measured distributions (paper notes, section 4.4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "profile.hpp"

namespace pipe_bd {

// A draw depends on (seed, what, block, member, step) alone and not on the order of calls: every
// schedule, depth and device count sees the same random times, so that differences between two
// simulations are differences between schedules.
class Sampler {
 public:
  Sampler(const Profile& profile, std::uint64_t seed, double jitter)
      : profile_(profile), jitter_(jitter), keys_(3 * profile.blocks) {
    for (std::size_t key = 0; key < keys_.size(); ++key) keys_[key] = mix(mix(seed) ^ key);
  }

  // True when every draw returns the profile's own number.
  bool deterministic() const {
    return jitter_ == 0.0 && profile_.teacher_samples.values.empty() &&
           profile_.student_samples.values.empty() && profile_.update_samples.values.empty();
  }

  double teacher(std::size_t block, std::size_t size, int member, int step) const {
    const std::size_t at = profile_.at(block, size);
    return draw(profile_.teacher_samples, at, profile_.teacher_s[at], 3 * block, member, step);
  }
  double student(std::size_t block, std::size_t size, int member, int step) const {
    const std::size_t at = profile_.at(block, size);
    return draw(profile_.student_samples, at, profile_.student_s[at], 3 * block + 1, member, step);
  }
  double update(std::size_t block, int member, int step) const {
    return draw(profile_.update_samples, block, profile_.update_s[block], 3 * block + 2, member,
                step);
  }
  double allreduce(std::size_t block, std::size_t size) const {
    return profile_.allreduce_s[profile_.at(block, size)];
  }

 private:
  // The finaliser of splitmix64.
  static std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30u)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27u)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31u);
  }
  // Uniform in [0, 1).
  static double unit(std::uint64_t bits) { return static_cast<double>(bits >> 11u) * 0x1p-53; }

  double draw(const Samples& samples, std::size_t row, double measured, std::size_t key, int member,
              int step) const {
    const std::size_t count =
        samples.values.empty() ? 0 : samples.offsets[row + 1] - samples.offsets[row];
    if (count == 0 && jitter_ == 0.0) return measured;
    std::uint64_t bits =
        mix(keys_[key] ^ (static_cast<std::uint64_t>(static_cast<std::uint32_t>(member)) << 32u |
                          static_cast<std::uint32_t>(step)));
    double seconds = measured;
    if (count > 0) {
      const auto pick = static_cast<std::size_t>(unit(bits) * static_cast<double>(count));
      seconds = samples.values[samples.offsets[row] + pick];
      bits = mix(bits);  // the noise below is independent of which sample was drawn
    }
    if (jitter_ > 0.0) seconds *= 1.0 + jitter_ * (2.0 * unit(bits) - 1.0);
    return seconds;
  }

  const Profile& profile_;
  double jitter_;
  std::vector<std::uint64_t> keys_;  // one stream per block and kind of work
};

}  // namespace pipe_bd
