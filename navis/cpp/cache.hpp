// Edge lists kept in memory under a budget. Which to keep is the policy's; the paper's is
// frequency, weighed by how early in a traversal a node is met (NAVIS, entrance-graph-aware cache).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "types.hpp"

namespace navis {

// lfu: aged frequencies of all ids, those not kept included, an access counting 1 / (1 + 0.05 *
// depth); halved while the entries are accessed ten times each on average. A newcomer enters if
// there is room or if it outweighs the entry it would push out (the coldest of about 8). lru: the
// least recently used of the id's shard goes, everything enters. none: nothing is kept.
enum class CachePolicy : std::uint8_t { lfu, lru, none };

// Of `find`: hits, those of pinned entries among them, and misses. Of lists offered that were not
// there yet: admitted and rejected. Entries that made room: evicted.
struct CacheCounters {
  std::uint64_t hits = 0, misses = 0, admitted = 0, rejected = 0, evicted = 0, pinned_hits = 0;
};

// An access of a recorded trace.
struct TraceAccess {
  NodeId id;
  std::uint32_t depth;
};

class EdgeCache {
 public:
  // `budget_bytes` covers entries, the id -> entry index and the frequencies; `degree` is the
  // largest list. The index is a hash table of what is kept (one u32 an entry, fixed from the
  // start). The frequencies are a byte an id, in pages that are made as ids are first accessed and
  // take the place of entries, a quarter of them at most: beyond that, ids share frequencies. Ids
  // should therefore be dense. Memory is taken from the system as it is first used.
  EdgeCache(std::size_t budget_bytes, std::size_t degree, CachePolicy policy, std::uint64_t seed);
  ~EdgeCache();
  EdgeCache(const EdgeCache&) = delete;
  EdgeCache& operator=(const EdgeCache&) = delete;

  // Copies the list of `id` to `out` (room for degree) and gives its length, or -1. Counts a hit
  // or a miss and notes the access, `depth` expansions into a traversal. Thread-safe: shards by
  // id, each with its own short lock.
  int find(NodeId id, std::size_t depth, NodeId* out);
  // The same without counting or noting anything.
  int peek(NodeId id, NodeId* out) const;
  // Whether it is here, right now.
  bool contains(NodeId id) const;
  // Offers a list just read; kept if the policy says so. An entry already there is replaced.
  // Error(bad_input) for more than `degree` ids, here and in `update` and `pin`.
  // `current`, if given, is asked under the shard's lock whether the list is still the newest:
  // who changes a list first makes it say no, then calls update(), so no old list stays behind.
  void offer(NodeId id, std::span<const NodeId> list, const std::function<bool()>& current = {});
  // The list has changed: replaces the entry if there is one, else nothing.
  void update(NodeId id, std::span<const NodeId> list);
  void erase(NodeId id);
  // Pinned entries never leave (entrance nodes); false when the budget is full of pinned ones.
  // An entry already there is replaced and pinned. With CachePolicy::none always false.
  bool pin(NodeId id, std::span<const NodeId> list);
  void unpin(NodeId id);

  // Gives so many bytes of the budget up, those of the coldest entries as far as it goes, and the
  // memory back to the system. Beside all other calls.
  void shrink(std::size_t bytes);

  std::size_t entries() const;
  std::size_t capacity() const;      // entries that fit beside the frequencies so far
  std::size_t memory_bytes() const;  // held now, never above the budget
  std::size_t limit_bytes() const;   // held when full
  CacheCounters counters() const;
  // Every access as (id, depth), for cachesim: set before use, called under a shard's lock, so by
  // several threads at once.
  void record(std::function<void(NodeId, std::size_t)> sink);

 private:
  friend CacheCounters simulate_cache(std::span<const TraceAccess>, std::size_t, CachePolicy,
                                      std::span<const NodeId>, std::uint64_t);
  // Room for exactly `entries` lists of one id, with the frequencies of `ids` ids apart.
  struct Exactly {
    std::size_t entries, ids;
  };
  EdgeCache(Exactly exactly, CachePolicy policy, std::uint64_t seed);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Replays a trace of (id, depth) through a cache of `entries` lists (each miss is offered) and
// gives its counters. `pinned` are held from the start, as many as fit, within `entries`.
CacheCounters simulate_cache(std::span<const TraceAccess> trace, std::size_t entries,
                             CachePolicy policy, std::span<const NodeId> pinned,
                             std::uint64_t seed);

}  // namespace navis
