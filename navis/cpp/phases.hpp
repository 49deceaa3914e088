// Which checkpoint has to be completed before a place on disk may be written again. Phases count
// up when a checkpoint begins and when it ends, so that odd ones are those in which a checkpoint is
// collecting what is where. Its owner's mutex protects it.
#pragma once

#include <cstdint>

namespace navis {

class Phases {
 public:
  // A checkpoint's table is collected between these two; a failed one is not completed.
  void begin() { ++phase_; }
  void end(bool completed) {
    ++phase_;
    if (completed) completed_ = phase_;
  }

  std::uint64_t now() const { return phase_; }
  // Whether no checkpoint can name what was written in phase `born`.
  bool unseen(std::uint64_t born) const { return !collecting() && born == phase_; }
  // The phase with which the first checkpoint ends that cannot name what is given up now: the next
  // one, or the one after where one is collecting, which may have seen it or not.
  std::uint64_t of_next() const { return phase_ / 2 * 2 + (collecting() ? 4 : 2); }
  bool reached(std::uint64_t phase) const { return phase <= completed_; }

 private:
  bool collecting() const { return phase_ % 2 == 1; }

  // What was there at opening is older than any checkpoint of this session.
  std::uint64_t phase_ = 2, completed_ = 2;
};

}  // namespace navis
