// Profiles for the tests: small tables written down in a few numbers.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "profile.hpp"

namespace pipe_bd::testing {

// Work that scales perfectly over group sizes 1..largest, without all-reduce, link or loader cost.
inline Profile ideal(const std::vector<double>& teacher_s, const std::vector<double>& student_s,
                     int largest = 1, double update_s = 0.0) {
  Profile profile;
  profile.blocks = teacher_s.size();
  for (int g = 1; g <= largest; ++g) profile.groups.push_back(g);
  for (std::size_t block = 0; block < profile.blocks; ++block) {
    for (const int g : profile.groups) {
      profile.teacher_s.push_back(teacher_s[block] / g);
      profile.student_s.push_back(student_s[block] / g);
      profile.allreduce_s.push_back(0.0);
      profile.memory_bytes.push_back(1.0);
    }
  }
  profile.update_s.assign(profile.blocks, update_s);
  profile.activation_bytes.assign(profile.blocks, 0.0);
  return profile;
}

inline void forbid(Profile& profile, std::size_t block, std::size_t size) {
  const std::size_t at = profile.at(block, size);
  profile.teacher_s[at] = profile.student_s[at] = profile.allreduce_s[at] = kUnavailable;
}

inline std::vector<Stage> one_block_each(std::size_t blocks) {
  std::vector<Stage> stages;
  stages.reserve(blocks);
  for (int block = 0; block < static_cast<int>(blocks); ++block)
    stages.push_back({block, block, 1});
  return stages;
}

}  // namespace pipe_bd::testing
