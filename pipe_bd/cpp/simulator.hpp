// "What would I gain on my cluster": every schedule as discrete events over a profile
// (Pipe-BD, sections II and IV; paper notes, sections 1.3-1.6 and 4.4).
#pragma once

#include <cstdint>
#include <vector>

#include "pipeline.hpp"
#include "profile.hpp"

namespace pipe_bd {

struct SimulationOptions {
  int steps = 200;
  int depth = 2;
  int prefetch = 2;
  std::uint64_t seed = 0;
  double jitter = 0.0;
};

struct SimulationResult {
  double total_s = 0.0;
  double period_s = 0.0;  // one step of every block
  double fill_s = 0.0;
  double bytes_per_step = 0.0;  // boundary tensors relayed; all-reduce traffic is not counted
  int peak_queue = 0;
  int peak_unsent = 0;
  std::vector<DeviceTime> devices;  // busy seconds of each device given, in rank order
};

// sequential (one stage, one device), joint (one stage, all devices), dpu and ahd; with `barrier`
// tr. Devices that the stages leave over stay idle.
SimulationResult simulate_relay(const Profile& profile, const std::vector<Stage>& stages,
                                bool barrier, int devices, const SimulationOptions& options);

// The paper's baseline: block after block on all devices, the teacher rerun up to the block.
SimulationResult simulate_dp(const Profile& profile, int devices, const SimulationOptions& options);

// Layer scheduling: device d trains the blocks of assignment[d], one after another and alone.
SimulationResult simulate_ls(const Profile& profile,
                             const std::vector<std::vector<int>>& assignment,
                             const SimulationOptions& options);

// Longest processing time first: costs in falling order, each to the least loaded bin; ties go to
// the lower block and the lower bin. Blocks within a bin rise.
std::vector<std::vector<int>> bin_pack(const std::vector<double>& costs, int bins);

}  // namespace pipe_bd
