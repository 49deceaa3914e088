#include "engine.hpp"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "crc32c.hpp"

namespace smart_infinity {

using shorthaul::uring::Buffer;
using shorthaul::uring::Completion;
using shorthaul::uring::File;

namespace {

constexpr unsigned kLanded = 3;  // what a transfer is of: array 0 to 2, or a landed gradient
constexpr unsigned kWrites = 4;  // added where it is a write
constexpr std::uint32_t kLandedBit = 1U << kLanded;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

const char* name_of(unsigned what) {
  constexpr const char* kNames[] = {"parameters", "first moments", "second moments", "gradients"};
  return kNames[what];
}

}  // namespace

struct Engine::Slot {
  std::size_t index = 0;
  Job job;
  Buffer record;    // the arrays, each in whole pages
  Buffer gradient;  // landed, when one is on disk
  Record in_memory;
  std::uint32_t read_mask = 0;
  unsigned awaiting = 0;  // transfers
  bool writing = false;
  Entry entry;  // of what is being written
  double read_begin = 0, parameters_begin = 0, moments_begin = 0;
  int error = 0;
  unsigned error_what = 0;
};

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
  std::vector<std::span<std::byte>> buffers;
  for (std::size_t i = 0; i < options.slots; ++i) {
    auto slot = std::make_unique<Slot>();
    slot->index = i;
    slot->record = Buffer(file_.shape().record_bytes());
    std::size_t at = 0;
    for (std::size_t array = 0; array < file_.shape().arrays(); ++array) {
      slot->in_memory.arrays[array] = slot->record.data() + at;
      at += file_.shape().stored_bytes(array, file_.shape().tile);
    }
    buffers.push_back(slot->record.span(0, slot->record.size()));
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
  if (wait && deferred_.empty()) {
    wake_.wait(lock, awake);
  } else if (wait) {
    const auto due = std::min_element(deferred_.begin(), deferred_.end(),
                                      [](auto& a, auto& b) { return a.when < b.when; });
    wake_.wait_until(lock, due->when, awake);
  }
  pending_.insert(pending_.end(), queue_.begin(), queue_.end());
  queue_.clear();
}

void Engine::run() {
  std::vector<Completion> completions;
  for (;;) {
    const bool moving = ring_->in_flight() > 0 || !ready_.empty();
    // Whatever kept a pending job from its slot or its tile may have ended a moment ago.
    take_jobs(!moving && pending_.empty());
    {
      const std::lock_guard lock(mutex_);
      if (stop_ && free_.size() == slots_.size()) return;
      if (stop_) pending_.clear();
    }
    while (!pending_.empty() && start(pending_.front())) pending_.pop_front();
    issue_due();
    if (ring_->in_flight() > 0) {
      completions.clear();
      ring_->submit_and_wait(ready_.empty() ? 1 : 0, completions);
      for (const Completion& done : completions) completed(done);
    }
    if (!ready_.empty()) {
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

// A gradient that stays in memory needs no slot. False where it goes to disk.
bool Engine::land(const Job& job) {
  Landing::Landed& landed = landing_.at(job.tile);
  const std::size_t n = landing_.elements(job.tile);
  const Gradient& g = job.gradient;
  if (g.encoding != Encoding::dense || g.bytes.size() != n * bytes_of(g.type)) {
    return false;  // refused with a slot in hand
  }
  if (!job.add && landed.where == Landing::Where::memory) landing_.drop(job.tile);
  if (landed.where == Landing::Where::disk) return false;
  if (landed.where == Landing::Where::memory) {
    std::vector<float> sum(n), more(n);
    kernels::to_float(landed.type, landed.bytes.get(), n, sum.data());
    kernels::to_float(g.type, g.bytes.data(), n, more.data());
    for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
    std::memcpy(landed.bytes.get(), sum.data(), n * sizeof(float));
    landed.type = Dtype::float32;
  } else {
    if (!landing_.take_memory(job.tile)) return false;
    std::memcpy(landed.bytes.get(), g.bytes.data(), g.bytes.size());
    landed.type = g.type;
  }
  emit(job, Event::Type::done, 0, true);
  return true;
}

void Engine::transfer(Slot& slot, bool writes, const File& file, std::uint64_t offset,
                      std::span<std::byte> bytes, unsigned what) {
  ++slot.awaiting;
  auto& pacer = writes ? write_pacer_ : read_pacer_;
  deferred_.push_back({pacer.take(bytes.size()), &slot, writes, &file, offset, bytes, what});
}

void Engine::issue_due() {
  const auto now = Pacer::Clock::now();
  std::size_t kept = 0;
  for (const Deferred& d : deferred_) {
    if (d.when > now) {
      deferred_[kept++] = d;
      continue;
    }
    const std::uint64_t tag = d.slot->index * 8 + d.what + (d.writes ? kWrites : 0);
    if (d.writes) {
      ring_->write(*d.file, d.offset, d.bytes, tag);
    } else {
      ring_->read(*d.file, d.offset, d.bytes, tag);
    }
  }
  deferred_.resize(kept);
}

void Engine::read(Slot& slot, std::uint32_t mask, bool landed) {
  const std::uint32_t tile = slot.job.tile;
  slot.read_mask = mask;
  slot.read_begin = now_s();
  if ((landed || slot.job.type == Job::Type::land) && slot.gradient.size() == 0) {
    slot.gradient = Buffer(file_.shape().tile * sizeof(float));
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
             slot.gradient.span(0, (bytes + kPage - 1) / kPage * kPage), kLanded);
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
         std::string(slot.error_what >= kWrites ? "writing " : "reading ") + name_of(at) + " of " +
             file.path().string() + ": " + std::generic_category().message(slot.error));
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

// What was read is what was written, or nothing is done with it.
void Engine::verify(Slot& slot) {
  const double begin = now_s();
  const Entry& entry = table_[slot.job.tile];
  for (unsigned array = 0; array < file_.shape().arrays(); ++array) {
    if ((slot.read_mask >> array & 1U) == 0) continue;
    const std::size_t bytes = file_.shape().stored_bytes(array, slot.in_memory.n);
    if (page_sum(slot.in_memory.arrays[array], bytes) != entry.sums[array]) {
      throw Error(ErrorKind::corrupt, std::string("the ") + name_of(array) + " in " +
                                          file_.file().path().string() +
                                          " are damaged (checksum); see smart-infinity repair");
    }
  }
  const std::lock_guard lock(mutex_);
  counters_.sum_s += now_s() - begin;
}

void Engine::work(Slot& slot) {
  verify(slot);
  switch (slot.job.type) {
    case Job::Type::update:
    case Job::Type::update_landed:
      step(slot);
      break;
    case Job::Type::land:
      write_landed(slot);
      break;
    case Job::Type::read:
      hand_out(slot);
      break;
    case Job::Type::write: {
      const Shape& shape = file_.shape();
      const std::size_t n = slot.in_memory.n;
      std::span<const std::byte> from = slot.job.gradient.bytes;
      for (std::size_t array = 0; array < shape.arrays(); ++array) {
        if ((slot.job.mask >> array & 1U) == 0) continue;
        const std::size_t bytes = slot.job.decoded ? n * sizeof(float) : shape.bytes(array, n);
        if (from.size() < bytes) throw Error(ErrorKind::bad_input, "fewer bytes than its arrays");
        std::byte* to = slot.in_memory.arrays[array];
        std::memset(to, 0, shape.stored_bytes(array, n));
        if (slot.job.decoded) {
          std::vector<float> values(n);
          std::memcpy(values.data(), from.data(), bytes);
          encode_array(shape, array, segments_[slot.job.tile], plan_.step, values.data(), n, to);
        } else {
          std::memcpy(to, from.data(), bytes);
        }
        from = from.subspan(bytes);
      }
      if (!from.empty()) throw Error(ErrorKind::bad_input, "more bytes than its arrays");
      emit(slot.job, Event::Type::done, 0, true);
      write_back(slot);
      break;
    }
  }
}

void Engine::step(Slot& slot) {
  const Job& job = slot.job;
  Gradient gradient = job.gradient;
  if (job.type == Job::Type::update_landed) {
    const Landing::Landed& landed = landing_.at(job.tile);
    const std::byte* bytes =
        landed.where == Landing::Where::memory ? landed.bytes.get() : slot.gradient.data();
    gradient = {{bytes, slot.in_memory.n * bytes_of(landed.type)}, Encoding::dense, landed.type};
  }
  const std::size_t bytes = job.out.empty() ? 0 : slot.in_memory.n * bytes_of(job.out_type);
  if (job.out.size() < bytes) throw Error(ErrorKind::bad_input, "no room to hand parameters up");
  const double begin = now_s();
  const bool finite =
      update_.run(file_.shape(), segments_[job.tile], plan_, gradient, slot.in_memory,
                  bytes > 0 ? job.out.data() : nullptr, job.out_type);
  const double end = now_s();
  updated_[job.tile] = 1;
  if (job.type == Job::Type::update_landed) landing_.drop(job.tile);
  {
    const std::lock_guard lock(mutex_);
    counters_.kernel_s += end - begin;
    ++counters_.tiles;
    if (options_.trace) trace_.push_back({Span::What::update, job.tile, begin, end});
  }
  emit(job, Event::Type::done, bytes, finite);
  write_back(slot);
}

void Engine::hand_out(Slot& slot) {
  const Job& job = slot.job;
  const Shape& shape = file_.shape();
  const std::size_t n = slot.in_memory.n;
  std::size_t at = 0;
  const auto room = [&](std::size_t bytes) {
    if (job.out.size() - at < bytes) throw Error(ErrorKind::bad_input, "no room to read into");
    return job.out.data() + at;
  };
  for (std::size_t array = 0; array < shape.arrays(); ++array) {
    if ((job.mask >> array & 1U) == 0) continue;
    const std::size_t bytes = job.decoded ? n * sizeof(float) : shape.bytes(array, n);
    std::byte* out = room(bytes);
    if (job.decoded) {
      decode_array(shape, array, slot.in_memory.arrays[array], n, reinterpret_cast<float*>(out));
    } else {
      std::memcpy(out, slot.in_memory.arrays[array], bytes);
    }
    at += bytes;
  }
  if ((job.mask & kLandedBit) != 0) {
    const Landing::Landed& landed = landing_.at(job.tile);
    if (landed.where == Landing::Where::nowhere) {
      throw Error(ErrorKind::protocol, "no gradient has landed");
    }
    const std::size_t bytes = n * bytes_of(landed.type);
    std::memcpy(room(bytes),
                landed.where == Landing::Where::memory ? landed.bytes.get() : slot.gradient.data(),
                bytes);
    at += bytes;
    landing_.drop(job.tile);
  }
  emit(job, Event::Type::done, at, true);
  finish(slot);
}

// Beside the committed state, parameters first.
void Engine::write_back(Slot& slot) {
  const std::uint32_t tile = slot.job.tile;
  const Shape& shape = file_.shape();
  const double begin = now_s();
  slot.entry.extent = 1 - file_.committed().table[tile].extent;
  for (std::size_t array = 0; array < shape.arrays(); ++array) {
    slot.entry.sums[array] =
        page_sum(slot.in_memory.arrays[array], shape.stored_bytes(array, slot.in_memory.n));
  }
  {
    const std::lock_guard lock(mutex_);
    counters_.sum_s += now_s() - begin;
  }
  slot.writing = true;
  slot.parameters_begin = slot.moments_begin = now_s();
  for (unsigned array = 0; array < shape.arrays(); ++array) {
    transfer(slot, true, file_.file(), file_.offset(tile, slot.entry.extent, array),
             {slot.in_memory.arrays[array], shape.stored_bytes(array, slot.in_memory.n)}, array);
  }
}

void Engine::write_landed(Slot& slot) {
  const Job& job = slot.job;
  const std::size_t n = slot.in_memory.n;
  const Gradient& g = job.gradient;
  Landing::Landed& landed = landing_.at(job.tile);
  if (g.encoding != Encoding::dense || g.bytes.size() != n * bytes_of(g.type)) {
    throw Error(ErrorKind::bad_input, "a gradient of " + std::to_string(g.bytes.size()) +
                                          " bytes to land for " + std::to_string(n) + " elements");
  }
  std::size_t bytes = g.bytes.size();
  if (job.add && landed.where == Landing::Where::disk) {
    std::vector<float> sum(n), more(n);
    kernels::to_float(landed.type, slot.gradient.data(), n, sum.data());
    kernels::to_float(g.type, g.bytes.data(), n, more.data());
    for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
    bytes = n * sizeof(float);
    std::memcpy(slot.gradient.data(), sum.data(), bytes);
    landed.type = Dtype::float32;
  } else {
    std::memcpy(slot.gradient.data(), g.bytes.data(), bytes);
    landed.type = g.type;
  }
  slot.writing = true;
  transfer(slot, true, landing_.file(), landing_.offset(job.tile),
           slot.gradient.span(0, (bytes + kPage - 1) / kPage * kPage), kLanded);
}

}  // namespace smart_infinity
