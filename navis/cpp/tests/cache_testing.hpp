// What the tests of the cache share.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "cache.hpp"

namespace cache_testing {

using navis::CacheCounters;
using navis::CachePolicy;
using navis::EdgeCache;
using navis::Error;
using navis::kNoNode;
using navis::NodeId;
using navis::simulate_cache;
using navis::TraceAccess;

inline constexpr std::size_t kDegree = 32;

inline std::mt19937 random_from(std::uint32_t seed) { return std::mt19937(seed); }

// A list whose every part tells whose it is and which version.
inline std::vector<NodeId> list_of(NodeId id, NodeId version) {
  std::vector<NodeId> list(2 + (id + version) % (kDegree - 1));
  list[0] = id;
  for (std::size_t i = 1; i < list.size(); ++i) {
    list[i] = version * 1000 + static_cast<NodeId>(i);
  }
  return list;
}
inline bool is_of(const NodeId* list, int length, NodeId id, NodeId& version) {
  if (length < 2 || list[0] != id) return false;
  version = (list[1] - 1) / 1000;
  const auto wanted = list_of(id, version);
  return std::equal(wanted.begin(), wanted.end(), list, list + length);
}

// Finds, and offers after a miss; whether it was a hit. Whatever is found must be right.
inline bool access(EdgeCache& cache, NodeId id, std::size_t depth = 0) {
  NodeId out[kDegree];
  const int length = cache.find(id, depth, out);
  NodeId version = 0;
  if (length >= 0 && !is_of(out, length, id, version)) FAIL("a wrong list for ", id);
  if (length < 0) cache.offer(id, list_of(id, 0));
  return length >= 0;
}

// Draws ids with probability proportional to 1 / rank^exponent, ranks being shuffled.
class Zipf {
 public:
  Zipf(std::size_t count, double exponent, std::uint64_t seed) : random_(seed), ids_(count) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
      cumulated_.push_back(sum += std::pow(static_cast<double>(i + 1), -exponent));
    }
    std::iota(ids_.begin(), ids_.end(), 0U);
    std::shuffle(ids_.begin(), ids_.end(), random_);
  }
  NodeId operator()() {
    std::uniform_real_distribution<double> place(0, cumulated_.back());
    const auto rank = std::lower_bound(cumulated_.begin(), cumulated_.end(), place(random_));
    return ids_[static_cast<std::size_t>(rank - cumulated_.begin())];
  }

 private:
  std::mt19937_64 random_;
  std::vector<double> cumulated_;
  std::vector<NodeId> ids_;
};

inline double hit_ratio(const CacheCounters& counters) {
  return static_cast<double>(counters.hits) / static_cast<double>(counters.hits + counters.misses);
}

// A budget that holds about `entries` lists.
inline std::size_t budget_for(std::size_t entries) { return entries * (4 * kDegree + 28) + 8192; }

}  // namespace cache_testing
