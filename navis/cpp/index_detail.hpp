// Shared by the files that implement Index.
#pragma once

#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "index.hpp"

namespace navis {

// Records of the log; their layout is in docs/format.md.
enum class RecordType : std::uint32_t { insert = 1, remove = 2, patch = 3, release = 4 };

inline constexpr std::uint32_t kStateVersion = 1;

// 0, 1, 2, ...
inline std::vector<std::size_t> given_order(std::size_t n) {
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}
// Nodes of an entrance graph that no edges lead to from where its searches start.
std::vector<NodeId> lost_entrances(const Entrance& entrance);
// What an index is, from its state.nav; Error(bad_input) where there is none.
IndexOptions read_options(const std::filesystem::path& folder);
// Writes state.nav with these codes, from which the log is to be replayed at begin_lsn; gives its
// size. Takes `commit` for short pieces, and makes the log and the page files durable first.
std::uint64_t save_state(Store& store, const std::shared_ptr<Quantized>& quantized,
                         std::uint64_t begin_lsn, std::mutex& commit, Wal* wal);

// A lane for the time of a call; a lane that threw is not used again.
class Index::LaneLease {
 public:
  LaneLease(Index& index, std::unique_ptr<Lane> lane)
      : index_(index), lane_(std::move(lane)), exceptions_(std::uncaught_exceptions()) {}
  ~LaneLease() {
    if (std::uncaught_exceptions() != exceptions_) return;
    std::lock_guard lock(index_.lanes_mutex_);
    index_.lanes_.push_back(std::move(lane_));
  }
  LaneLease(const LaneLease&) = delete;
  LaneLease& operator=(const LaneLease&) = delete;
  Lane* operator->() { return lane_.get(); }
  Lane& operator*() { return *lane_; }

 private:
  Index& index_;
  std::unique_ptr<Lane> lane_;
  int exceptions_;
};

// Runs `work` on several threads, the caller's among them; rethrows the first exception after all
// have ended.
template <class Work>
void run_threads(std::size_t threads, Work&& work) {
  std::exception_ptr failure;
  std::mutex mutex;
  auto guarded = [&] {
    try {
      work();
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::size_t i = 1; i < threads; ++i) others.emplace_back(guarded);
    guarded();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace navis
