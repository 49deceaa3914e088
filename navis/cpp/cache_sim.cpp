#include <algorithm>

#include "cache.hpp"

namespace navis {

CacheCounters simulate_cache(std::span<const TraceAccess> trace, std::size_t entries,
                             CachePolicy policy, std::span<const NodeId> pinned,
                             std::uint64_t seed) {
  NodeId largest = 0;
  for (const TraceAccess& access : trace) largest = std::max(largest, access.id);
  EdgeCache cache(EdgeCache::Exactly{entries, std::size_t{largest} + 1}, policy, seed);
  for (const NodeId id : pinned) cache.pin(id, std::span(&id, 1));
  NodeId list = kNoNode;
  for (const TraceAccess& access : trace) {
    if (cache.find(access.id, access.depth, &list) < 0) {
      cache.offer(access.id, std::span(&access.id, 1));
    }
  }
  return cache.counters();
}

}  // namespace navis
