#include "simulator.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <stdexcept>

namespace pipe_bd {
namespace {

// Index of a group size in the profile's tables.
std::size_t size_index(const Profile& profile, int devices) {
  const auto found = std::lower_bound(profile.groups.begin(), profile.groups.end(), devices);
  if (found == profile.groups.end() || *found != devices) {
    throw std::invalid_argument("a group size that the profile lacks");
  }
  return static_cast<std::size_t>(found - profile.groups.begin());
}

void require(const Profile& profile, std::size_t first, std::size_t last, std::size_t size) {
  for (std::size_t block = first; block <= last; ++block) {
    if (!profile.available(block, size)) {
      throw std::invalid_argument("a group size that the profile lacks for a block");
    }
  }
}

PipelineSpec base_spec(const Profile& profile, const SimulationOptions& options) {
  PipelineSpec spec;
  spec.loader_s = profile.loader_s;
  spec.steps = options.steps;
  spec.depth = options.depth;
  spec.prefetch = options.prefetch;
  return spec;
}

// One block trained alone on a group, behind its own rerun of the teacher. Each block is a run of
// its own and draws times of its own.
PipelineResult run_block(const Profile& profile, std::size_t block, int devices,
                         const SimulationOptions& options) {
  const std::size_t size = size_index(profile, devices);
  require(profile, 0, block, size);
  PipelineSpec spec = base_spec(profile, options);
  spec.stages.push_back({devices, size, 0, block, block});
  const Sampler sampler(profile, options.seed + (block + 1) * 0x9e3779b97f4a7c15u, options.jitter);
  return run_pipeline(spec, sampler);
}

void add(DeviceTime& to, const DeviceTime& from) {
  to.teacher_s += from.teacher_s;
  to.student_s += from.student_s;
  to.allreduce_s += from.allreduce_s;
  to.update_s += from.update_s;
}

}  // namespace

SimulationResult simulate_relay(const Profile& profile, const std::vector<Stage>& stages,
                                bool barrier, int devices, const SimulationOptions& options) {
  PipelineSpec spec = base_spec(profile, options);
  spec.barrier = barrier;
  SimulationResult result;
  for (const Stage& stage : stages) {
    const auto first = static_cast<std::size_t>(stage.first);
    const auto last = static_cast<std::size_t>(stage.last);
    const std::size_t size = size_index(profile, stage.devices);
    require(profile, first, last, size);
    if (first > 0) {
      spec.cut_s.push_back(profile.link_seconds(first - 1));
      result.bytes_per_step += profile.activation_bytes[first - 1];
    }
    spec.stages.push_back({stage.devices, size, first, first, last});
  }
  PipelineResult run = run_pipeline(spec, Sampler(profile, options.seed, options.jitter));
  result.total_s = run.total_s;
  result.period_s = run.period_s;
  result.fill_s = run.fill_s;
  result.peak_queue = run.peak_queue;
  result.peak_unsent = run.peak_unsent;
  result.devices = std::move(run.devices);
  result.devices.resize(std::max(result.devices.size(), static_cast<std::size_t>(devices)));
  return result;
}

SimulationResult simulate_dp(const Profile& profile, int devices,
                             const SimulationOptions& options) {
  SimulationResult result;
  result.devices.resize(static_cast<std::size_t>(devices));
  for (std::size_t block = 0; block < profile.blocks; ++block) {
    const PipelineResult run = run_block(profile, block, devices, options);
    result.total_s += run.total_s;
    result.period_s += run.period_s;
    if (block == 0) result.fill_s = run.fill_s;
    for (std::size_t d = 0; d < result.devices.size(); ++d) add(result.devices[d], run.devices[d]);
  }
  return result;
}

SimulationResult simulate_ls(const Profile& profile,
                             const std::vector<std::vector<int>>& assignment,
                             const SimulationOptions& options) {
  SimulationResult result;
  result.devices.resize(assignment.size());
  for (std::size_t d = 0; d < assignment.size(); ++d) {
    double total = 0.0;
    double period = 0.0;
    for (std::size_t i = 0; i < assignment[d].size(); ++i) {
      const PipelineResult run =
          run_block(profile, static_cast<std::size_t>(assignment[d][i]), 1, options);
      total += run.total_s;
      period += run.period_s;
      if (i == 0) result.fill_s = std::max(result.fill_s, run.fill_s);
      add(result.devices[d], run.devices[0]);
    }
    result.total_s = std::max(result.total_s, total);
    result.period_s = std::max(result.period_s, period);
  }
  return result;
}

std::vector<std::vector<int>> bin_pack(const std::vector<double>& costs, int bins) {
  std::vector<std::size_t> order(costs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
  std::vector<double> load(static_cast<std::size_t>(bins), 0.0);
  std::vector<std::vector<int>> packed(load.size());
  for (const std::size_t item : order) {
    const auto bin =
        static_cast<std::size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    load[bin] += costs[item];
    packed[bin].push_back(static_cast<int>(item));
  }
  for (std::vector<int>& bin : packed) std::sort(bin.begin(), bin.end());
  return packed;
}

}  // namespace pipe_bd
