// Requests: what was asked for, what is still missing of it, and what a backend's answer means.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "engine.hpp"

namespace shorthaul::uring {

using detail::Bytes;
using detail::Operation;
using detail::Outcome;

namespace {

// The kernel's own limits.
constexpr unsigned kDeepest = 32768;
constexpr std::size_t kLargestRegistered = std::size_t{1} << 30U;

Backend from_environment(std::string& reason) {
  const char* value = std::getenv("SHORTHAUL_IO");
  const std::string_view asked = value == nullptr ? "" : value;
  if (asked.empty()) return Backend::automatic;
  if (asked == "uring") return Backend::uring;
  if (asked != "posix") {
    throw std::invalid_argument("SHORTHAUL_IO=" + std::string(asked) + ": use uring or posix");
  }
  reason = "SHORTHAUL_IO=posix";
  return Backend::posix;
}

std::uintptr_t address(std::span<const std::byte> bytes) {
  return reinterpret_cast<std::uintptr_t>(bytes.data());
}

}  // namespace

struct Ring::Impl {
  struct Request {
    Operation operation = Operation::read;
    File file;  // keeps the descriptors open
    Bytes bytes;
    std::size_t done = 0;
    std::uint64_t offset = 0;
    std::uint64_t tag = 0;
    int buffer_index = -1;
  };

  Backend backend = Backend::uring;
  std::string reason;
  std::unique_ptr<detail::Engine> engine;
  Counters counters;
  std::vector<Request> requests;    // one per slot
  std::vector<std::uint32_t> free;  // slots
  std::vector<Outcome> outcomes;    // from the engine, or refused here and not yet handed out
  std::vector<File> files;          // registered; kept open, so that no descriptor changes hands
  std::unordered_map<int, int> index_of_fd;  // into `files`
  std::vector<Bytes> buffers;                // registered, by rising address

  explicit Impl(const Options& options) {
    if (options.depth == 0 || options.depth > kDeepest || options.posix_threads == 0) {
      throw std::invalid_argument("a ring's depth is 1 to 32768, its posix_threads 1 or more");
    }
    Backend wanted = options.backend;
    reason = wanted == Backend::posix ? "asked for" : "";
    if (wanted == Backend::automatic) wanted = from_environment(reason);
    if (wanted != Backend::posix) {
      detail::Refusal refusal;
      engine = detail::make_uring(options.depth, refusal);
      reason = refusal.reason;
      if (!engine && wanted == Backend::uring) {
        throw std::system_error(refusal.code, std::generic_category(), reason);
      }
    }
    backend = engine ? Backend::uring : Backend::posix;
    if (!engine) engine = detail::make_posix(options.depth, options.posix_threads);
    requests.resize(options.depth);
    outcomes.reserve(options.depth);
    for (unsigned slot = options.depth; slot > 0; --slot) free.push_back(slot - 1);
  }

  // The kernel or a thread may still write into the callers' memory.
  ~Impl() {
    try {
      std::vector<Completion> ignored;
      while (in_flight() > 0) submit_and_wait(in_flight(), ignored);
    } catch (...) {
      return;  // io_uring_enter failed for good, and there is nobody left to tell
    }
  }

  std::size_t in_flight() const { return requests.size() - free.size(); }

  void ask(Operation operation, const File& file, std::uint64_t offset, Bytes bytes,
           std::uint64_t tag) {
    if (free.empty()) throw std::length_error("depth: all requests of the ring are in flight");
    const std::uint32_t slot = free.back();
    free.pop_back();
    requests[slot] = {operation, file, bytes, 0, offset, tag, buffer_of(bytes)};
    // What a backend would take for something else: io_uring reads at the file's own position for
    // offset -1, and other numbers wrap around.
    constexpr auto last = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!file) {
      outcomes.push_back({slot, -EBADF});
    } else if (offset > last || bytes.size() > last - offset) {
      outcomes.push_back({slot, -EINVAL});
    } else {
      push(slot);
    }
  }

  void push(std::uint32_t slot) {
    const Request& request = requests[slot];
    // A transfer that stopped at an odd place is taken up where alignment does not matter.
    const bool odd = request.done % kAlignment != 0;
    detail::Transfer transfer;
    transfer.operation = request.operation;
    transfer.fd = odd ? request.file.buffered_fd() : request.file.fd();
    const auto found = index_of_fd.find(transfer.fd);
    if (found != index_of_fd.end()) transfer.file_index = found->second;
    transfer.buffer_index = request.buffer_index;
    const Bytes rest = request.bytes.subspan(request.done);
    transfer.data = rest.data();
    transfer.bytes = std::min(rest.size(), detail::kLongest);
    transfer.offset = request.offset + request.done;
    transfer.slot = slot;
    engine->push(transfer);
  }

  int buffer_of(std::span<const std::byte> bytes) const {
    const std::uintptr_t at = address(bytes);
    const auto after = std::ranges::upper_bound(buffers, at, {}, address);
    if (after == buffers.begin() || bytes.empty()) return -1;
    const auto found = after - 1;
    const std::uintptr_t before = at - address(*found);
    const bool inside = before <= found->size() && bytes.size() <= found->size() - before;
    return inside ? static_cast<int>(found - buffers.begin()) : -1;
  }

  // True when the request has ended and is in `out`.
  bool settle(const Outcome& outcome, std::vector<Completion>& out) {
    Request& request = requests[outcome.slot];
    int error = outcome.result < 0 ? -outcome.result : 0;
    // ECANCELED: the thread that submitted has ended, and the kernel dropped what it had not begun.
    bool again = error == EINTR || error == EAGAIN || error == ECANCELED;
    if (error == 0) {
      const auto moved = static_cast<std::size_t>(outcome.result);
      const bool reads = request.operation == Operation::read;
      request.done += moved;
      (reads ? counters.read_bytes : counters.write_bytes) += moved;
      const bool missing = request.done < request.bytes.size();
      again = missing && moved > 0;
      counters.continued += again ? 1 : 0;
      if (missing && moved == 0) error = reads ? ENODATA : EIO;
    }
    if (again) {
      push(outcome.slot);
      return false;
    }
    out.push_back({request.tag, error, request.done});
    request.file = File();
    free.push_back(outcome.slot);
    return true;
  }

  std::size_t submit_and_wait(std::size_t minimum, std::vector<Completion>& out) {
    minimum = std::min(minimum, in_flight());
    // Nothing may throw between an outcome and its completion.
    const std::size_t room = out.size() + in_flight();
    if (out.capacity() < room) out.reserve(std::max(room, 2 * out.capacity()));
    std::size_t ended = 0;
    std::size_t pushed = 0;  // anew: to be started before this returns
    do {
      const std::size_t known = ended + outcomes.size();
      engine->exchange(minimum - std::min(minimum, known), outcomes, counters);
      const std::size_t before = ended;
      for (const Outcome& outcome : outcomes) ended += settle(outcome, out) ? 1 : 0;
      pushed = outcomes.size() - (ended - before);
      outcomes.clear();
    } while (pushed > 0 || ended < minimum);
    return ended;
  }
};

Ring::Ring(const Options& options) : impl_(std::make_unique<Impl>(options)) {}
Ring::~Ring() = default;
Ring::Ring(Ring&&) noexcept = default;
Ring& Ring::operator=(Ring&&) noexcept = default;

Backend Ring::backend() const { return impl_->backend; }
const std::string& Ring::reason() const { return impl_->reason; }
std::size_t Ring::in_flight() const { return impl_->in_flight(); }
std::size_t Ring::depth() const { return impl_->requests.size(); }
const Counters& Ring::counters() const { return impl_->counters; }

bool Ring::register_files(std::span<const File> files) {
  if (in_flight() > 0) throw std::logic_error("register_files: requests are in flight");
  std::vector<int> fds;
  for (const File& file : files) fds.push_back(file.fd());
  impl_->index_of_fd.clear();
  impl_->files.assign(files.begin(), files.end());
  if (!impl_->engine->register_files(fds)) return false;
  for (std::size_t index = 0; index < fds.size(); ++index) {
    impl_->index_of_fd[fds[index]] = static_cast<int>(index);
  }
  return true;
}

bool Ring::register_buffers(std::span<const std::span<std::byte>> buffers) {
  if (in_flight() > 0) throw std::logic_error("register_buffers: requests are in flight");
  std::vector<Bytes> sorted;
  for (const Bytes& buffer : buffers) {
    if (!buffer.empty() && buffer.size() <= kLargestRegistered) sorted.push_back(buffer);
  }
  std::ranges::sort(sorted, {}, address);
  impl_->buffers.clear();
  const bool taken = impl_->engine->register_buffers(sorted);
  if (taken) impl_->buffers = std::move(sorted);
  return taken;
}

void Ring::read(const File& file, std::uint64_t offset, std::span<std::byte> into,
                std::uint64_t tag) {
  impl_->ask(Operation::read, file, offset, into, tag);
  ++impl_->counters.reads;
}

void Ring::write(const File& file, std::uint64_t offset, std::span<const std::byte> bytes,
                 std::uint64_t tag) {
  // A backend only reads what is written; the two directions share one type.
  auto* data = const_cast<std::byte*>(bytes.data());
  impl_->ask(Operation::write, file, offset, {data, bytes.size()}, tag);
  ++impl_->counters.writes;
}

void Ring::sync(const File& file, std::uint64_t tag) {
  impl_->ask(Operation::sync, file, 0, {}, tag);
  ++impl_->counters.syncs;
}

std::size_t Ring::submit_and_wait(std::size_t minimum, std::vector<Completion>& out) {
  return impl_->submit_and_wait(minimum, out);
}

bool is_available(std::string* reason) {
  detail::Refusal refusal;
  const bool available = detail::make_uring(1, refusal) != nullptr;
  if (reason != nullptr) *reason = refusal.reason;
  return available;
}

}  // namespace shorthaul::uring
