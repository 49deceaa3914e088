// The backend that always works: threads that call pread, pwrite and fdatasync.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "engine.hpp"

namespace shorthaul::uring::detail {
namespace {

int run(const Transfer& asked) {
  const auto at = static_cast<off_t>(asked.offset);
  ssize_t moved = 0;
  if (asked.operation == Operation::read) moved = ::pread(asked.fd, asked.data, asked.bytes, at);
  if (asked.operation == Operation::write) moved = ::pwrite(asked.fd, asked.data, asked.bytes, at);
  if (asked.operation == Operation::sync) moved = ::fdatasync(asked.fd);
  return moved < 0 ? -errno : static_cast<int>(moved);
}

class PosixEngine final : public Engine {
 public:
  PosixEngine(unsigned depth, unsigned threads) {
    pushed_.reserve(depth);
    outcomes_.reserve(depth);
    for (unsigned made = 0; made < std::min(depth, threads); ++made) {
      threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
    }
  }

  void push(const Transfer& transfer) override { pushed_.push_back(transfer); }

  void exchange(std::size_t minimum, std::vector<Outcome>& out, Counters& counters) override {
    std::unique_lock lock(mutex_);
    counters.submits += pushed_.size();
    jobs_.insert(jobs_.end(), pushed_.begin(), pushed_.end());
    for (std::size_t woken = 0; woken < std::min(pushed_.size(), threads_.size()); ++woken) {
      work_.notify_one();
    }
    pushed_.clear();
    if (outcomes_.size() < minimum) {
      ++counters.waits;
      wanted_ = minimum;
      done_.wait(lock, [this] { return outcomes_.size() >= wanted_; });
    }
    out.insert(out.end(), outcomes_.begin(), outcomes_.end());
    outcomes_.clear();
  }

  bool register_files(std::span<const int>) override { return false; }
  bool register_buffers(std::span<const Bytes>) override { return false; }

 private:
  void work(const std::stop_token& stop) {
    sigset_t all;  // signals belong to the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    std::unique_lock lock(mutex_);
    while (work_.wait(lock, stop, [this] { return !jobs_.empty(); })) {
      const Transfer transfer = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      const Outcome outcome{transfer.slot, run(transfer)};
      lock.lock();
      outcomes_.push_back(outcome);
      if (outcomes_.size() >= wanted_) done_.notify_one();
    }
  }

  std::vector<Transfer> pushed_;  // the caller's own until exchange()
  std::mutex mutex_;
  std::condition_variable_any work_;
  std::condition_variable done_;
  std::deque<Transfer> jobs_;
  std::vector<Outcome> outcomes_;
  std::size_t wanted_ = 1;
  std::vector<std::jthread> threads_;  // last, so that they end before what they use
};

}  // namespace

std::unique_ptr<Engine> make_posix(unsigned depth, unsigned threads) {
  return std::make_unique<PosixEngine>(depth, threads);
}

}  // namespace shorthaul::uring::detail
