#include "engine.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

#include "crc32c.hpp"
#include "engine_slot.hpp"

namespace smart_infinity {

using shorthaul::uring::Buffer;
using shorthaul::uring::Completion;
using shorthaul::uring::File;

Engine::Engine(StateFile file, std::vector<std::vector<Segment>> segments,
               const EngineOptions& options)
    : file_(std::move(file)),
      segments_(std::move(segments)),
      options_(options),
      table_(file_.committed().table),
      updated_(table_.size()),
      busy_(table_.size()),
      landing_(file_.folder(), file_.shape().elements,
               (file_.shape().tile * sizeof(float) + kPage - 1) / kPage * kPage,
               options.landing_bytes),
      update_(tile_update(options.update, file_.shape())),
      read_pacer_(options.read_rate),
      write_pacer_(options.write_rate) {
  if (segments_.size() != table_.size()) {
    throw Error(ErrorKind::bad_input, std::to_string(segments_.size()) + " lists of segments for " +
                                          std::to_string(table_.size()) + " tiles");
  }
  if (options.slots == 0) throw Error(ErrorKind::bad_input, "slots=0: use 1 or more");
  shorthaul::uring::Options ring;
  ring.depth = options.slots * 8;
  ring_ = std::make_unique<shorthaul::uring::Ring>(ring);
  const std::size_t record = file_.shape().record_bytes();
  records_ = Buffer(options.slots * record);
  std::vector<std::span<std::byte>> buffers;
  for (std::size_t i = 0; i < options.slots; ++i) {
    auto slot = std::make_unique<Slot>();
    slot->index = i;
    std::size_t at = i * record;
    for (std::size_t array = 0; array < file_.shape().arrays(); ++array) {
      slot->in_memory.arrays[array] = records_.data() + at;
      at += file_.shape().stored_bytes(array, file_.shape().tile);
    }
    buffers.push_back(records_.span(i * record, record));
    free_.push_back(slot.get());
    slots_.push_back(std::move(slot));
  }
  ring_->register_buffers(buffers);
  const File files[] = {file_.file()};
  ring_->register_files(files);
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    queue_.clear();
  }
  wake_.notify_all();
  thread_.join();
}

// ------------------------------------------------------------------ callers' side

void Engine::wait_idle(std::unique_lock<std::mutex>& lock) {
  idle_.wait(lock, [this] { return outstanding_ == 0; });
}

void Engine::begin(StepPlan plan) {
  std::unique_lock lock(mutex_);
  wait_idle(lock);
  for (const std::uint16_t which : plan.hyper_of) {
    if (which != kSkip && which >= plan.hypers.size()) {
      throw Error(ErrorKind::bad_input, "a parameter's settings are number " +
                                            std::to_string(which) + " of " +
                                            std::to_string(plan.hypers.size()));
    }
  }
  plan_ = std::move(plan);
  std::fill(updated_.begin(), updated_.end(), 0);
}

void Engine::submit(const Job& job) {
  {
    const std::lock_guard lock(mutex_);
    if (job.tile >= table_.size()) {
      throw Error(ErrorKind::bad_input,
                  "tile " + std::to_string(job.tile) + " of " + std::to_string(table_.size()));
    }
    queue_.push_back(job);
    ++outstanding_;
  }
  wake_.notify_one();
}

bool Engine::next(Event& event, double timeout_s) {
  std::unique_lock lock(mutex_);
  const auto time = std::chrono::duration<double>(timeout_s);
  if (!event_.wait_for(lock, time, [this] { return !events_.empty(); })) return false;
  event = std::move(events_.front());
  events_.pop_front();
  return true;
}

void Engine::prepare(std::uint64_t step, std::string_view note) {
  std::unique_lock lock(mutex_);
  wait_idle(lock);
  if (failed_) throw Error(ErrorKind::protocol, "a job of this step has failed; abandon it");
  file_.prepare(step, table_, note);
  const std::size_t table = (table_.size() * sizeof(Entry) + kPage - 1) / kPage * kPage;
  counters_.meta_bytes += table + (note.size() + kPage - 1) / kPage * kPage;
}

void Engine::commit() {
  const std::lock_guard lock(mutex_);
  file_.commit();
  counters_.meta_bytes += kPage;
}

void Engine::abandon() {
  std::unique_lock lock(mutex_);
  wait_idle(lock);
  table_ = file_.committed().table;
  std::fill(updated_.begin(), updated_.end(), 0);
  landing_.clear();
  failed_ = false;
}

void Engine::rollback() {
  std::unique_lock lock(mutex_);
  wait_idle(lock);
  file_.rollback();
  table_ = file_.committed().table;
}

EngineCounters Engine::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

std::vector<Span> Engine::take_trace() {
  const std::lock_guard lock(mutex_);
  return std::exchange(trace_, {});
}

// ------------------------------------------------------------------ the thread's side

void Engine::emit(const Job& job, Event::Type type, std::size_t bytes, bool finite) {
  Event event;
  event.type = type;
  event.job = job.type;
  event.tile = job.tile;
  event.tag = job.tag;
  event.bytes = bytes;
  event.finite = finite;
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  event_.notify_one();
}

void Engine::finish(Slot& slot) {
  busy_[slot.job.tile] = 0;
  slot.job = Job{};
  free_.push_back(&slot);
  const std::lock_guard lock(mutex_);
  if (--outstanding_ == 0) idle_.notify_all();
}

void Engine::fail(Slot& slot, ErrorKind kind, const std::string& message) {
  Event event;
  event.type = Event::Type::failed;
  event.job = slot.job.type;
  event.tile = slot.job.tile;
  event.tag = slot.job.tag;
  event.error = kind;
  event.message =
      file_.folder().string() + ": tile " + std::to_string(slot.job.tile) + ": " + message;
  {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    events_.push_back(std::move(event));
  }
  event_.notify_one();
  finish(slot);
}

void Engine::take_jobs(bool wait) {
  std::unique_lock lock(mutex_);
  const auto awake = [this] { return stop_ || !queue_.empty(); };
  if (wait && held_.empty()) {
    wake_.wait(lock, awake);
  } else if (wait) {
    const auto next = std::min_element(held_.begin(), held_.end(),
                                       [](auto& a, auto& b) { return a.until < b.until; });
    wake_.wait_until(lock, next->until, awake);
  }
  pending_.insert(pending_.end(), queue_.begin(), queue_.end());
  queue_.clear();
}

void Engine::run() {
  std::vector<Completion> completions;
  bool blocked = false;  // what is pending waits for a slot or a tile, and nothing has ended since
  for (;;) {
    const bool moving = ring_->in_flight() > 0 || !ready_.empty();
    take_jobs(!moving && (pending_.empty() || blocked));
    bool stopping = false;
    {
      const std::lock_guard lock(mutex_);
      if (stop_ && free_.size() == slots_.size()) return;
      stopping = stop_;
    }
    if (stopping) pending_.clear();
    if (!held_.empty()) release_held(stopping);
    while (!pending_.empty() && start(pending_.front())) pending_.pop_front();
    blocked = !pending_.empty();
    if (ring_->in_flight() > 0) {
      blocked = false;
      completions.clear();
      ring_->submit_and_wait(ready_.empty() ? 1 : 0, completions);
      for (const Completion& done : completions) arrived(done);
    }
    if (!ready_.empty()) {
      blocked = false;
      Slot& slot = *ready_.front();
      ready_.pop_front();
      try {
        work(slot);
      } catch (const Error& error) {
        fail(slot, error.kind(), error.what());
      } catch (const std::system_error& error) {
        fail(slot, ErrorKind::io, error.what());
      }
    }
  }
}

// False where it has to wait for a slot, or for the job before it on the same tile.
bool Engine::start(const Job& job) {
  if (busy_[job.tile]) return false;
  if (job.type == Job::Type::land && land(job)) {
    const std::lock_guard lock(mutex_);
    if (--outstanding_ == 0) idle_.notify_all();
    return true;
  }
  if (free_.empty()) return false;
  Slot& slot = *free_.back();
  free_.pop_back();
  busy_[job.tile] = 1;
  slot.job = job;
  slot.writing = false;
  slot.error = 0;
  slot.read_mask = 0;
  slot.in_memory.n = file_.shape().elements[job.tile];
  const std::uint32_t all = (1U << file_.shape().arrays()) - 1;
  const Landing::Where landed = landing_.at(job.tile).where;
  switch (job.type) {
    case Job::Type::update:
    case Job::Type::update_landed:
      if (updated_[job.tile]) {
        fail(slot, ErrorKind::protocol, "a second update in one step");
      } else if (job.type == Job::Type::update_landed && landed == Landing::Where::nowhere) {
        fail(slot, ErrorKind::protocol, "no gradient has landed");
      } else {
        read(slot, all, job.type == Job::Type::update_landed && landed == Landing::Where::disk);
      }
      break;
    case Job::Type::land:
      read(slot, 0, job.add && landed == Landing::Where::disk);
      break;
    case Job::Type::read:
      read(slot, job.mask & all, (job.mask & kLandedBit) != 0 && landed == Landing::Where::disk);
      break;
    case Job::Type::write:
      read(slot, all & ~job.mask, false);
      break;
  }
  return true;
}

void Engine::transfer(Slot& slot, bool writes, const File& file, std::uint64_t offset,
                      std::span<std::byte> bytes, unsigned what) {
  ++slot.awaiting;
  const unsigned which = what + (writes ? kWrites : 0);
  slot.until[which] = (writes ? write_pacer_ : read_pacer_).take(bytes.size());
  const std::uint64_t tag = slot.index * 8 + which;
  if (writes) {
    ring_->write(file, offset, bytes, tag);
  } else {
    ring_->read(file, offset, bytes, tag);
  }
}

// A slowed medium is a real transfer whose end is told when its rate allows.
void Engine::arrived(const Completion& done) {
  const auto until = slots_[done.tag / 8]->until[done.tag % 8];
  if (until > Pacer::Clock::now()) {
    held_.push_back({until, done});
  } else {
    completed(done);
  }
}

void Engine::release_held(bool all) {
  const auto now = Pacer::Clock::now();
  std::vector<Completion> due;
  std::erase_if(held_, [&](const Held& held) {
    if (!all && held.until > now) return false;
    due.push_back(held.done);
    return true;
  });
  for (const Completion& done : due) completed(done);
}

void Engine::read(Slot& slot, std::uint32_t mask, bool landed) {
  const std::uint32_t tile = slot.job.tile;
  slot.read_mask = mask;
  slot.read_begin = now_s();
  if ((landed || slot.job.type == Job::Type::land) && slot.gradient.empty()) {
    const std::size_t each = (file_.shape().tile * sizeof(float) + kPage - 1) / kPage * kPage;
    if (gradients_.size() == 0) gradients_ = Buffer(slots_.size() * each);
    slot.gradient = gradients_.span(slot.index * each, each);
  }
  for (unsigned array = 0; array < file_.shape().arrays(); ++array) {
    if ((mask >> array & 1U) == 0) continue;
    const std::size_t bytes = file_.shape().stored_bytes(array, slot.in_memory.n);
    transfer(slot, false, file_.file(), file_.offset(tile, table_[tile].extent, array),
             {slot.in_memory.arrays[array], bytes}, array);
  }
  if (landed) {
    slot.read_mask |= kLandedBit;
    const std::size_t bytes = slot.in_memory.n * bytes_of(landing_.at(tile).type);
    transfer(slot, false, landing_.file(), landing_.offset(tile),
             slot.gradient.first((bytes + kPage - 1) / kPage * kPage), kLanded);
  }
  if (slot.awaiting == 0) ready_.push_back(&slot);
}

void Engine::completed(const Completion& done) {
  Slot& slot = *slots_[done.tag / 8];
  const unsigned what = done.tag % 8 % kWrites;
  const bool writes = done.tag % 8 >= kWrites;
  if (done.error != 0 && slot.error == 0) {
    slot.error = done.error;
    slot.error_what = static_cast<unsigned>(done.tag % 8);
  }
  --slot.awaiting;
  {
    const std::lock_guard lock(mutex_);
    (writes ? counters_.write_bytes : counters_.read_bytes) += done.bytes;
    ++(writes ? counters_.writes : counters_.reads);
    if (what == kLanded) {
      (writes ? counters_.landed_write_bytes : counters_.landed_read_bytes) += done.bytes;
    }
    if (options_.trace) {
      const double end = now_s();
      const std::uint32_t tile = slot.job.tile;
      if (!writes && slot.awaiting == 0) {
        trace_.push_back({Span::What::read, tile, slot.read_begin, end});
      } else if (writes && what == 0) {
        trace_.push_back({Span::What::write_parameters, tile, slot.parameters_begin, end});
      } else if (writes && what != kLanded && slot.awaiting == 0) {
        trace_.push_back({Span::What::write_moments, tile, slot.moments_begin, end});
      }
    }
  }
  if (slot.awaiting > 0) return;
  if (slot.error != 0) {
    const unsigned at = slot.error_what % kWrites;
    const File& file = at == kLanded ? landing_.file() : file_.file();
    fail(slot, ErrorKind::io,
         std::string(slot.error_what >= kWrites ? "writing " : "reading ") + array_name(at) +
             " of " + file.path().string() + ": " + std::generic_category().message(slot.error));
    return;
  }
  if (!slot.writing) {
    ready_.push_back(&slot);
    return;
  }
  const Job job = slot.job;
  if (job.type == Job::Type::land) {
    landing_.at(job.tile).where = Landing::Where::disk;
    emit(job, Event::Type::done, 0, true);
  } else {
    table_[job.tile] = slot.entry;
    emit(job, Event::Type::settled, 0, true);
  }
  finish(slot);
}

}  // namespace smart_infinity
