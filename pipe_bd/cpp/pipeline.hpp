// Discrete-event simulation of one relay pipeline: stages, bounded queues, links, loader, barrier.
// Every schedule of the simulator is made of such pipelines; a single stage is the simplest one.
#pragma once

#include <cstddef>
#include <vector>

#include "sampler.hpp"

namespace pipe_bd {

// A group of devices that trains the students of blocks student_first..last and for that runs the
// teacher's blocks teacher_first..last (further back than its students in the dp and ls schedules,
// which recompute the teacher).
struct StageSpec {
  int devices = 1;
  std::size_t size = 0;  // index of `devices` in Profile::groups
  std::size_t teacher_first = 0;
  std::size_t student_first = 0;
  std::size_t last = 0;
};

struct PipelineSpec {
  std::vector<StageSpec> stages;
  std::vector<double> cut_s;  // seconds that the link before stage s + 1 needs per step
  double loader_s = 0.0;
  int steps = 1;
  int depth = 1;     // receives posted ahead, and boundary tensors a sender may hold unsent
  int prefetch = 1;  // batches loaded ahead; 0 loads in line with the first stage
  bool barrier = false;
};

struct DeviceTime {
  double teacher_s = 0.0;
  double student_s = 0.0;
  double allreduce_s = 0.0;
  double update_s = 0.0;
};

struct PipelineResult {
  double total_s = 0.0;
  double period_s = 0.0;            // mean seconds per step over the second half of the run
  double fill_s = 0.0;              // when the last stage starts its first batch
  int peak_queue = 0;               // boundary tensors of one cut produced and not yet taken
  int peak_unsent = 0;              // of those, not yet transferred
  std::vector<DeviceTime> devices;  // busy time, in rank order
};

PipelineResult run_pipeline(const PipelineSpec& spec, const Sampler& sampler);

}  // namespace pipe_bd
