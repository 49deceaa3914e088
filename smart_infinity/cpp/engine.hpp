// One device: a thread that keeps tiles moving between its file and a fixed set of slots. Reads run
// ahead, parameters are handed up as soon as they are stepped and written before the moments, and
// all of it lands beside the state it came from (Smart-Infinity, sections on SmartUpdate and the
// internal data transfer handler).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <shorthaul/uring.hpp>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "job.hpp"
#include "landing.hpp"
#include "pacer.hpp"
#include "state_file.hpp"
#include "tile.hpp"

namespace smart_infinity {

struct EngineOptions {
  unsigned slots = 8;               // tiles in memory at once; with one nothing overlaps
  std::uint64_t landing_bytes = 0;  // gradients kept in memory until their step; the rest on disk
  double read_rate = 0, write_rate = 0;  // bytes a second that this device's media is slowed to
  bool trace = false;
  Updater update = Updater::cpu;
};

// When a tile's work began and ended, in seconds on CLOCK_MONOTONIC.
struct Span {
  enum class What : std::uint8_t { read, update, hand_up, write_parameters, write_moments };
  What what;
  std::uint32_t tile;
  double begin, end;
};

struct EngineCounters {
  std::uint64_t read_bytes = 0, write_bytes = 0;                // of tiles, landing included
  std::uint64_t landed_read_bytes = 0, landed_write_bytes = 0;  // of these, gradients'
  std::uint64_t reads = 0, writes = 0;
  std::uint64_t tiles = 0;         // updated
  std::uint64_t meta_bytes = 0;    // written for tables, notes and slots
  double kernel_s = 0, sum_s = 0;  // computing updates, and checksums
};

class Engine {
 public:
  // `segments`: of each tile, ascending and apart.
  Engine(StateFile file, std::vector<std::vector<Segment>> segments, const EngineOptions& options);
  ~Engine();  // waits for transfers in flight
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Begins a step, when all jobs have ended: what updates do from now on.
  void begin(StepPlan plan);
  void submit(const Job& job);
  // The next event, or false after `timeout_s`. Events come from whichever thread calls.
  bool next(Event& event, double timeout_s);

  // Waits for all jobs, then makes the step's outcome durable beside the committed state (see
  // StateFile). Error(protocol) when a job has failed: abandon() then.
  void prepare(std::uint64_t step, std::string_view note);
  void commit();
  void abandon();   // forgets what was written since the last commit, and what has landed
  void rollback();  // to the step before the committed one

  const StateFile& file() const { return file_; }
  EngineCounters counters() const;
  std::vector<Span> take_trace();
  const std::string& io_reason() const { return ring_->reason(); }  // why not io_uring, or empty
  bool direct() const { return file_.file().direct(); }

 private:
  struct Slot;
  struct Held {
    Pacer::Clock::time_point until;
    shorthaul::uring::Completion done;
  };
  void run();
  void take_jobs(bool wait);
  bool start(const Job& job);
  bool land(const Job& job);
  void read(Slot& slot, std::uint32_t mask, bool landed);
  void work(Slot& slot);
  void step(Slot& slot);
  void hand_out(Slot& slot);
  void write_back(Slot& slot);
  void write_landed(Slot& slot);
  void arrived(const shorthaul::uring::Completion& done);
  void release_held(bool all);
  void completed(const shorthaul::uring::Completion& done);
  void finish(Slot& slot);
  void fail(Slot& slot, ErrorKind kind, const std::string& message);
  void emit(const Job& job, Event::Type type, std::size_t bytes, bool finite);
  void transfer(Slot& slot, bool writes, const shorthaul::uring::File& file, std::uint64_t offset,
                std::span<std::byte> bytes, unsigned what);
  void verify(Slot& slot);
  void wait_idle(std::unique_lock<std::mutex>& lock);

  StateFile file_;
  const std::vector<std::vector<Segment>> segments_;
  const EngineOptions options_;
  std::vector<Entry> table_;   // where tiles are, as of the step under way
  std::vector<char> updated_;  // in this step
  std::vector<char> busy_;     // a job is at it
  StepPlan plan_;
  Landing landing_;
  std::unique_ptr<TileUpdate> update_;
  Pacer read_pacer_, write_pacer_;
  // Of all slots, in huge pages: the arrays of tiles, and gradients that wait on disk.
  shorthaul::uring::Buffer records_, gradients_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> free_;
  std::deque<Slot*> ready_;
  std::deque<Job> pending_;  // taken from the queue, not yet begun
  std::vector<Held> held_;   // done sooner than a slowed medium would have been
  std::unique_ptr<shorthaul::uring::Ring> ring_;

  mutable std::mutex mutex_;
  std::condition_variable wake_, idle_, event_;
  std::deque<Job> queue_;
  std::deque<Event> events_;
  std::size_t outstanding_ = 0;  // jobs not yet ended
  bool failed_ = false;
  bool stop_ = false;
  EngineCounters counters_;
  std::vector<Span> trace_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace smart_infinity
