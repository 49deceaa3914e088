#include "wal.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "crc32c.hpp"
#include "posix_file.hpp"
#include "wal_format.hpp"

namespace navis {
namespace {

using Clock = std::chrono::steady_clock;

// What append may gather before it writes by itself.
constexpr std::size_t kBufferBytes = 8U << 20U;

}  // namespace

struct Wal::Impl {
  Impl(std::filesystem::path folder_given, std::uint64_t next, WalOptions options_given);
  ~Impl();

  // What one write takes from the buffer, and what will be true when it is done.
  struct Batch {
    std::uint64_t offset = 0, end = 0;  // in the segment
    std::uint64_t upto = 0;             // last LSN in it
    bool has_records = false;
    bool closes_segment = false;
  };
  using Lock = std::unique_lock<std::mutex>;

  std::uint64_t append(std::uint32_t type, std::span<const std::byte> payload);
  void wait_for(std::uint64_t lsn, bool durably);
  std::uint64_t rotate();
  void remove_before(std::uint64_t lsn);

  Batch take_batch(bool rotate);
  void write(const Batch& batch);
  std::uint64_t lead(Lock& lock, bool sync, bool rotate);
  void sync_segment(wal::SegmentWriter& segment);
  void open_segment(std::uint64_t first_lsn, posix::Open how = posix::Open::create_new);
  void sync_in_background();
  void close();

  void fail(const Error& error);
  void throw_if_failed() const;

  const std::filesystem::path folder;
  const WalOptions options;

  // Guards all below down to the line; held for copying, never during I/O.
  mutable std::mutex mutex;
  std::condition_variable changed;  // for who waits to lead or for the leader
  std::condition_variable syncer_wakes;
  bool syncer_idle = false;
  posix::AlignedBuffer filling;  // begins at `filling_offset`, with the last, partly filled block
  std::size_t filling_written = 0;  // bytes of it that are already in the file
  std::uint64_t filling_offset = kPageBytes;
  std::uint64_t next_lsn;
  std::uint64_t written_lsn, durable_lsn;
  bool leading = false;  // somebody writes
  bool stopping = false;
  std::optional<Error> failure;
  std::vector<wal::Segment> segments;  // the last is being written
  WalCounters counters;
  std::shared_ptr<wal::SegmentWriter> current;  // shared with a sync that runs beside a rotation
  // ---
  // Only who leads touches these.
  posix::AlignedBuffer writing;
  // One sync at a time: the kernel reports a lost write to one caller of fdatasync only, and the
  // other must not take its own success for an answer.
  std::mutex sync_mutex;
  std::thread syncer;
};

Wal::Impl::Impl(std::filesystem::path folder_given, std::uint64_t next, WalOptions options_given)
    : folder(std::move(folder_given)),
      options(options_given),
      next_lsn(next),
      written_lsn(next - 1),
      durable_lsn(next - 1) {
  if (next == 0) throw Error(ErrorKind::bad_input, "log sequence numbers begin at 1");
  if (!(options.window_s > 0)) throw Error(ErrorKind::bad_input, "window_s must be positive");
  std::error_code error;
  if (std::filesystem::create_directories(folder, error)) {
    posix::sync_folder(folder.parent_path());
  }
  if (error) posix::throw_errno(error.value(), "cannot create", folder);
  auto how = posix::Open::create_new;
  for (auto& segment : wal::list_segments(folder)) {
    if (segment.first_lsn < next) {
      segments.push_back(std::move(segment));
      continue;
    }
    // A crash before the first whole record leaves a segment of our name. Any other is not ours.
    const bool empty = segment.first_lsn == next &&
                       wal::read_segment(segment, next, true, [](auto, auto, auto) {}).records == 0;
    if (!empty) {
      throw Error(ErrorKind::bad_input, segment.path.string() + " holds records from " +
                                            std::to_string(segment.first_lsn) +
                                            " on: the log cannot continue at " +
                                            std::to_string(next));
    }
    how = posix::Open::replace;  // never without a segment: that is how a lost log is told
  }
  // A run that was killed may have left records that are written but not durable, and those to come
  // will say that all before them is.
  if (!segments.empty()) posix::File(segments.back().path, posix::Open::read, false).sync_data();
  // Room for the block that take_batch carries over, so that it cannot throw.
  filling.reserve(kPageBytes);
  writing.reserve(kPageBytes);
  open_segment(next, how);
  if (options.durability == Durability::group) {
    syncer = std::thread([this] { sync_in_background(); });
  }
}

Wal::Impl::~Impl() {
  {
    const Lock lock(mutex);
    stopping = true;
    syncer_wakes.notify_all();
  }
  if (syncer.joinable()) syncer.join();
  try {
    close();
  } catch (const std::exception& error) {
    fail(Error(ErrorKind::io, error.what()));  // who wants to be told calls flush() first
  }
}

void Wal::Impl::fail(const Error& error) {
  const Lock lock(mutex);
  if (!failure) failure = error;
  changed.notify_all();
  syncer_wakes.notify_all();
}

void Wal::Impl::throw_if_failed() const {
  if (failure) throw Error(failure->kind(), failure->what());
}

void Wal::Impl::open_segment(std::uint64_t first_lsn, posix::Open how) {
  auto fresh = std::make_shared<wal::SegmentWriter>(folder, first_lsn, options.direct, how);
  const Lock lock(mutex);
  current = std::move(fresh);
  segments.push_back({first_lsn, current->path(), kPageBytes});
  ++counters.writes;
  counters.written_bytes += kPageBytes;
  ++counters.syncs;
}

std::uint64_t Wal::Impl::append(std::uint32_t type, std::span<const std::byte> payload) {
  if (payload.size() > kWalMaxPayload) {
    throw Error(ErrorKind::bad_input, "a log record of " + std::to_string(payload.size()) +
                                          " bytes; the largest is " +
                                          std::to_string(kWalMaxPayload));
  }
  const std::uint32_t payload_crc = wal::padded_crc(payload);
  Lock lock(mutex);
  throw_if_failed();
  const std::uint64_t lsn = next_lsn;
  wal::append_record(filling, lsn, durable_lsn, type, payload, payload_crc);
  ++next_lsn;
  ++counters.records;
  counters.payload_bytes += payload.size();
  while (filling.size() - filling_written > kBufferBytes) {
    throw_if_failed();
    if (leading) {
      changed.wait(lock);
    } else {
      lead(lock, false, false);
    }
  }
  return lsn;
}

// Returns when LSNs <= lsn are written, or durable; the thread that finds nobody leading leads.
void Wal::Impl::wait_for(std::uint64_t lsn, bool durably) {
  Lock lock(mutex);
  while (true) {
    throw_if_failed();
    if (lsn >= next_lsn) {
      throw Error(ErrorKind::bad_input, "there is no log record " + std::to_string(lsn) + " yet");
    }
    if ((durably ? durable_lsn : written_lsn) >= lsn) return;
    if (leading) {
      changed.wait(lock);
    } else {
      lead(lock, durably, false);
    }
  }
}

std::uint64_t Wal::Impl::rotate() {
  Lock lock(mutex);
  changed.wait(lock, [&] { return failure || !leading; });
  throw_if_failed();
  if (segments.back().first_lsn == next_lsn) return next_lsn;  // nothing to close
  return lead(lock, true, true);
}

// Takes what has been appended and leaves its last, partly filled block for the next write.
Wal::Impl::Batch Wal::Impl::take_batch(bool rotate) {
  Batch batch;
  batch.offset = filling_offset;
  batch.end = filling_offset + filling.size();
  batch.upto = next_lsn - 1;
  batch.has_records = filling.size() > filling_written;
  batch.closes_segment = rotate || batch.end >= options.segment_bytes;
  std::swap(filling, writing);
  const std::size_t tail = batch.closes_segment ? 0 : writing.size() % kPageBytes;
  filling.clear();
  filling.append(writing.data() + (writing.size() - tail), tail);
  filling_written = tail;
  filling_offset = batch.closes_segment ? kPageBytes : batch.end - tail;
  return batch;
}

void Wal::Impl::write(const Batch& batch) {
  writing.pad_to_page();
  const std::uint64_t end = batch.offset + writing.size();
  // Zeros ahead pay where every commit syncs.
  const bool ahead = options.durability == Durability::sync && !batch.closes_segment;
  if (batch.has_records) current->write(batch.offset, writing, ahead ? options.segment_bytes : 0);
  if (batch.closes_segment) current->cut(end);
}

void Wal::Impl::sync_segment(wal::SegmentWriter& segment) {
  const std::lock_guard<std::mutex> one_at_a_time(sync_mutex);
  {
    const Lock lock(mutex);
    throw_if_failed();
  }
  try {
    segment.sync();
  } catch (const Error& error) {
    fail(error);
    throw;
  }
}

// Writes and, if asked, syncs what has been appended so far, without the lock; nobody else leads
// meanwhile. Gives the first LSN that is not in the batch.
std::uint64_t Wal::Impl::lead(Lock& lock, bool sync, bool rotate) {
  leading = true;
  const Batch batch = take_batch(rotate);
  sync = sync || batch.closes_segment;
  lock.unlock();
  try {
    write(batch);
    if (sync) sync_segment(*current);
    lock.lock();
    written_lsn = batch.upto;
    if (sync) durable_lsn = std::max(durable_lsn, batch.upto);
    counters.syncs += sync ? 1 : 0;
    if (batch.has_records) {
      ++counters.writes;
      counters.written_bytes += writing.size();
      segments.back().bytes = batch.end;
    }
    changed.notify_all();
    if (syncer_idle && written_lsn > durable_lsn) syncer_wakes.notify_all();
    if (batch.closes_segment) {
      lock.unlock();
      open_segment(batch.upto + 1);
      lock.lock();
    }
  } catch (const std::exception& error) {
    if (lock.owns_lock()) lock.unlock();
    const auto* known = dynamic_cast<const Error*>(&error);
    fail(known ? *known : Error(ErrorKind::io, std::string("the log: ") + error.what()));
    lock.lock();
  }
  leading = false;
  changed.notify_all();
  throw_if_failed();
  return batch.upto + 1;
}

// Durability::group: never longer than the window without a sync while there is something to sync.
// It runs beside the writes, so that those who commit do not wait for it.
void Wal::Impl::sync_in_background() {
  const auto window = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::min(options.window_s, 3600.0)));
  Lock lock(mutex);
  auto next = Clock::now();
  while (true) {
    syncer_idle = true;
    syncer_wakes.wait(lock, [&] { return stopping || failure || written_lsn > durable_lsn; });
    syncer_idle = false;
    syncer_wakes.wait_until(lock, next, [&] { return stopping || failure; });
    if (stopping || failure) return;
    next = Clock::now() + window;
    const std::uint64_t upto = written_lsn;
    const auto segment = current;  // the earlier ones were synced when they were closed
    lock.unlock();
    try {
      sync_segment(*segment);
    } catch (const Error&) {
      return;  // kept for the next to append or commit
    }
    lock.lock();
    durable_lsn = std::max(durable_lsn, upto);
    ++counters.syncs;
    changed.notify_all();
  }
}

// A closing mark says that all before it is durable, and lets replay tell damage from a torn tail.
void Wal::Impl::close() {
  Lock lock(mutex);
  throw_if_failed();
  lead(lock, true, false);
  if (segments.back().first_lsn == next_lsn) return;
  wal::append_closing_mark(filling, next_lsn);
  const Batch batch = take_batch(false);
  lock.unlock();
  writing.pad_to_page();
  current->write(batch.offset, writing, 0);
  current->cut(batch.offset + writing.size());
  current->sync();
}

void Wal::Impl::remove_before(std::uint64_t lsn) {
  std::vector<wal::Segment> old;
  {
    const Lock lock(mutex);
    std::size_t count = 0;
    while (count + 1 < segments.size() && segments[count + 1].first_lsn <= lsn) ++count;
    const auto stop = static_cast<std::ptrdiff_t>(count);
    old.assign(segments.begin(), segments.begin() + stop);
    segments.erase(segments.begin(), segments.begin() + stop);
  }
  // Oldest first: whenever this stops, what is left has no gap.
  for (const auto& segment : old) {
    std::error_code error;
    std::filesystem::remove(segment.path, error);
    if (error) posix::throw_errno(error.value(), "cannot remove", segment.path);
  }
  if (!old.empty()) posix::sync_folder(folder);
}

Wal::Wal(std::filesystem::path folder, std::uint64_t next_lsn, WalOptions options)
    : impl_(std::make_unique<Impl>(std::move(folder), next_lsn, options)) {}
Wal::~Wal() = default;

std::uint64_t Wal::append(std::uint32_t type, std::span<const std::byte> payload) {
  return impl_->append(type, payload);
}

void Wal::commit(std::uint64_t lsn) {
  if (impl_->options.durability == Durability::none) {
    const Impl::Lock lock(impl_->mutex);
    impl_->throw_if_failed();
    return;
  }
  impl_->wait_for(lsn, impl_->options.durability == Durability::sync);
}

void Wal::flush() { impl_->wait_for(next_lsn() - 1, true); }

std::uint64_t Wal::rotate() { return impl_->rotate(); }

void Wal::remove_before(std::uint64_t lsn) { impl_->remove_before(lsn); }

std::uint64_t Wal::next_lsn() const {
  const Impl::Lock lock(impl_->mutex);
  return impl_->next_lsn;
}

std::uint64_t Wal::durable_lsn() const {
  const Impl::Lock lock(impl_->mutex);
  return impl_->durable_lsn;
}

std::uint64_t Wal::bytes_on_disk() const {
  const Impl::Lock lock(impl_->mutex);
  std::uint64_t bytes = 0;
  for (const auto& segment : impl_->segments) bytes += segment.bytes;
  return bytes + (impl_->filling.size() - impl_->filling_written);
}

WalCounters Wal::counters() const {
  const Impl::Lock lock(impl_->mutex);
  return impl_->counters;
}

}  // namespace navis
