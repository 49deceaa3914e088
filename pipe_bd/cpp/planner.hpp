// Automatic hybrid distribution (Pipe-BD, section IV-C; paper notes, section 1.6): the exact plan
// with the lowest period over all contiguous partitions and group sizes.
#pragma once

#include <optional>
#include <vector>

#include "profile.hpp"

namespace pipe_bd {

struct PlanOptions {
  int devices = 1;
  std::optional<double> memory_cap_bytes;  // per device
  int largest_group = 0;                   // 0: no limit beyond the profile's own
};

struct PlanResult {
  std::vector<Stage> stages;  // empty when infeasible
  double period_s = 0.0;
  int failed_block = -1;  // infeasible: the first block that no partial plan reaches
};

// Minimises, in this order: the period (slowest stage), the devices used, the number of stages;
// of equal plans the one whose list of (last, devices) is smallest. O(B^2 G N).
PlanResult plan(const Profile& profile, const PlanOptions& options);

}  // namespace pipe_bd
