#include "pipeline.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <queue>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace pipe_bd {
namespace {

enum class Kind : std::uint8_t { kLoaded, kTeacherDone, kBackwardDone, kUpdateDone, kTransferDone };

struct Event {
  double time;
  std::uint64_t order;  // ties happen in the order in which they were scheduled
  Kind kind;
  std::size_t index;  // stage; for kTransferDone the cut
  bool operator>(const Event& other) const {
    return std::tie(time, order) > std::tie(other.time, other.order);
  }
};

enum class Phase : std::uint8_t {
  kWaitInput,
  kTeacher,
  kWaitSend,
  kBackward,
  kWaitBarrier,
  kUpdate
};

struct StageState {
  Phase phase = Phase::kWaitInput;
  int step = 0;  // batch in work, or waited for
  double backward_s = 0.0;
  double update_s = 0.0;
  std::size_t first_device = 0;
};

// Counters of one cut between two stages; `sent` includes no transfer that is still on the wire.
struct CutState {
  int produced = 0;
  int sent = 0;
  int taken = 0;
  bool busy = false;
};

class Pipeline {
 public:
  Pipeline(const PipelineSpec& spec, const Sampler& sampler)
      : spec_(spec),
        sampler_(sampler),
        stages_(spec.stages.size()),
        cuts_(spec.stages.size() - 1),
        completed_(static_cast<std::size_t>(spec.steps), 0.0) {
    std::size_t devices = 0;
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      stages_[s].first_device = devices;
      devices += static_cast<std::size_t>(spec_.stages[s].devices);
    }
    result_.devices.resize(devices);
  }

  PipelineResult run() {
    try_load();
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.time;
      handle(event);
    }
    if (finished_ != stages_.size()) throw std::logic_error("the simulated pipeline is stuck");
    result_.total_s = now_;
    const std::size_t half = completed_.size() / 2;
    const double before = half > 0 ? completed_[half - 1] : 0.0;
    result_.period_s = (completed_.back() - before) / static_cast<double>(completed_.size() - half);
    return std::move(result_);
  }

 private:
  void schedule(double after, Kind kind, std::size_t index) {
    events_.push({now_ + after, order_++, kind, index});
  }

  void handle(const Event& event) {
    const std::size_t s = event.index;
    switch (event.kind) {
      case Kind::kLoaded:
        loading_ = false;
        ++loaded_;
        try_start(0);
        try_load();
        break;
      case Kind::kTransferDone:
        cuts_[s].busy = false;
        ++cuts_[s].sent;
        if (stages_[s].phase == Phase::kWaitSend) send(s);
        try_transfer(s);
        try_start(s + 1);
        break;
      case Kind::kTeacherDone:
        if (s + 1 < stages_.size()) {
          send(s);
        } else {
          start_backward(s);
        }
        break;
      case Kind::kBackwardDone:
        if (spec_.barrier) {
          arrive_at_barrier(s);
        } else {
          start_update(s);
        }
        break;
      case Kind::kUpdateDone:
        finish_step(s);
        break;
    }
  }

  // The loader is a resource of its own that works up to `prefetch` batches ahead.
  void try_load() {
    const bool wanted = spec_.prefetch > 0
                            ? loaded_ - loads_taken_ < spec_.prefetch
                            : loaded_ == loads_taken_ && stages_[0].phase == Phase::kWaitInput;
    if (loading_ || loaded_ == spec_.steps || !wanted) return;
    loading_ = true;
    schedule(spec_.loader_s, Kind::kLoaded, 0);
  }

  // Starts the stage's next batch if it is free and its input is there.
  void try_start(std::size_t s) {
    StageState& stage = stages_[s];
    if (stage.phase != Phase::kWaitInput || stage.step == spec_.steps) return;
    if (s == 0) {
      if (loaded_ == loads_taken_) return;
      ++loads_taken_;
    } else {
      CutState& cut = cuts_[s - 1];
      if (cut.sent == cut.taken) return;
      ++cut.taken;
    }
    if (s + 1 == stages_.size() && stage.step == 0) result_.fill_s = now_;
    stage.phase = Phase::kTeacher;
    schedule(draw_work(s), Kind::kTeacherDone, s);
    if (s == 0) {
      try_load();
    } else {
      try_transfer(s - 1);  // taking a tensor lets the next receive be posted
    }
  }

  // Draws this step's times of all members, books them as busy, and returns the length of the
  // teacher part: a group waits for its slowest member (at the cut's last rows, and again at the
  // all-reduce).
  double draw_work(std::size_t s) {
    const StageSpec& spec = spec_.stages[s];
    StageState& stage = stages_[s];
    double teacher_end = 0.0;
    double student_end = 0.0;
    double allreduce = 0.0;
    stage.update_s = 0.0;
    for (std::size_t block = spec.student_first; block <= spec.last; ++block) {
      allreduce += sampler_.allreduce(block, spec.size);
    }
    DeviceTime work;
    for (int member = 0; member < spec.devices; ++member) {
      if (member == 0 || !sampler_.deterministic()) work = member_work(spec, member, stage.step);
      DeviceTime& busy = result_.devices[stage.first_device + static_cast<std::size_t>(member)];
      busy.teacher_s += work.teacher_s;
      busy.student_s += work.student_s;
      busy.allreduce_s += allreduce;
      busy.update_s += work.update_s;
      teacher_end = std::max(teacher_end, work.teacher_s);
      student_end = std::max(student_end, work.teacher_s + work.student_s);
      stage.update_s = std::max(stage.update_s, work.update_s);
    }
    stage.backward_s = student_end - teacher_end + allreduce;
    return teacher_end;
  }

  DeviceTime member_work(const StageSpec& spec, int member, int step) const {
    DeviceTime work;
    for (std::size_t block = spec.teacher_first; block <= spec.last; ++block) {
      work.teacher_s += sampler_.teacher(block, spec.size, member, step);
    }
    for (std::size_t block = spec.student_first; block <= spec.last; ++block) {
      work.student_s += sampler_.student(block, spec.size, member, step);
      work.update_s += sampler_.update(block, member, step);
    }
    return work;
  }

  // Hands the boundary to the link and goes on; with `depth` tensors still unsent the stage must
  // wait first (back-pressure).
  void send(std::size_t s) {
    CutState& cut = cuts_[s];
    if (cut.produced - cut.sent >= spec_.depth) {
      stages_[s].phase = Phase::kWaitSend;
      return;
    }
    ++cut.produced;
    result_.peak_unsent = std::max(result_.peak_unsent, cut.produced - cut.sent);
    result_.peak_queue = std::max(result_.peak_queue, cut.produced - cut.taken);
    start_backward(s);
    try_transfer(s);
  }

  // The link carries one tensor at a time, and only into a receive that is posted: at most
  // `depth` ahead of what the consumer has taken.
  void try_transfer(std::size_t c) {
    CutState& cut = cuts_[c];
    if (cut.busy || cut.sent == cut.produced || cut.sent - cut.taken >= spec_.depth) return;
    cut.busy = true;
    schedule(spec_.cut_s[c], Kind::kTransferDone, c);
  }

  void start_backward(std::size_t s) {
    stages_[s].phase = Phase::kBackward;
    schedule(stages_[s].backward_s, Kind::kBackwardDone, s);
  }

  void start_update(std::size_t s) {
    stages_[s].phase = Phase::kUpdate;
    schedule(stages_[s].update_s, Kind::kUpdateDone, s);
  }

  // Teacher relaying without decoupled updates (paper notes, section 1.4): nobody updates before
  // everybody's backward pass of this step has ended.
  void arrive_at_barrier(std::size_t s) {
    stages_[s].phase = Phase::kWaitBarrier;
    if (++waiting_ < stages_.size()) return;
    waiting_ = 0;
    for (std::size_t each = 0; each < stages_.size(); ++each) start_update(each);
  }

  void finish_step(std::size_t s) {
    StageState& stage = stages_[s];
    double& completed = completed_[static_cast<std::size_t>(stage.step)];
    completed = std::max(completed, now_);
    stage.phase = Phase::kWaitInput;
    if (++stage.step == spec_.steps) ++finished_;
    if (s == 0) try_load();
    try_start(s);
  }

  const PipelineSpec& spec_;
  const Sampler& sampler_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::uint64_t order_ = 0;
  double now_ = 0.0;
  std::vector<StageState> stages_;
  std::vector<CutState> cuts_;
  std::vector<double> completed_;  // per step, the end of its last update anywhere
  int loaded_ = 0;
  int loads_taken_ = 0;
  bool loading_ = false;
  std::size_t waiting_ = 0;
  std::size_t finished_ = 0;
  PipelineResult result_;
};

}  // namespace

PipelineResult run_pipeline(const PipelineSpec& spec, const Sampler& sampler) {
  return Pipeline(spec, sampler).run();
}

}  // namespace pipe_bd
