// The inside of EdgeCache: its shards in cache.cpp, what stays and what goes in cache_policy.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "cache.hpp"
#include "cache_slab.hpp"

namespace navis {
namespace cache {

using Heat = std::uint8_t;

// The words of an entry's cell before its list. LFU has no use for the last two.
enum Word : std::uint8_t { kId, kNext, kLength, kNewer, kOlder };
inline constexpr std::uint32_t kPinned = 1U << 31U;  // in kLength

inline std::size_t header_words(CachePolicy policy) { return policy == CachePolicy::lru ? 5 : 3; }

// The ids that are equal modulo the number of shards.
struct alignas(64) Shard {
  mutable std::mutex mutex;
  std::unique_ptr<Cell[]> heads;  // of the chains of the hash table
  std::unique_ptr<Cell[]> pages;  // of frequencies, made when first needed
  std::size_t pages_made = 0;
  std::size_t evictable = 0;                // entries that are not pinned
  Cell newest = kNoCell, oldest = kNoCell;  // LRU, without the pinned
  std::uint64_t random = 0;
  std::size_t ageing = 0, page_to_age = 0;  // pages due, times the accesses to age all
  CacheCounters counters;
};

// What the shards and a cell's share of the tables take.
inline std::size_t shard_bytes(std::size_t buckets, std::size_t pages) {
  return sizeof(Shard) + (buckets + pages) * sizeof(Cell);
}

}  // namespace cache

struct EdgeCache::Impl {
  struct Sizes {
    std::size_t shards = 1, cells = 0, entry_limit = 0, pages_a_shard = 0;
  };
  static Sizes for_budget(std::size_t budget, std::size_t degree, CachePolicy policy);
  static Sizes for_entries(std::size_t entries, std::size_t ids, CachePolicy policy);

  Impl(Sizes given, std::size_t most_edges, CachePolicy chosen, std::uint64_t seed);

  using Cell = cache::Cell;
  using Heat = cache::Heat;
  using Shard = cache::Shard;

  Shard& shard_of(NodeId id) const { return shards[id & shard_mask]; }
  std::uint32_t local(NodeId id) const { return id >> shard_bits; }
  std::size_t bucket_of(NodeId id) const {
    const std::uint32_t hash = local(id) * 2654435769U;
    return (std::uint64_t{hash} * buckets) >> 32U;
  }
  Cell lookup(const Shard& shard, NodeId id) const;
  // The list and whether it is pinned.
  void put(Cell cell, std::span<const NodeId> list, bool pinned);
  int copy(Cell cell, NodeId* out) const;
  void insert(Shard& shard, Cell cell, NodeId id, std::span<const NodeId> list, bool pinned);
  void remove(Shard& shard, Cell cell);
  // Among those that may be evicted, as the newest.
  void link(Shard& shard, Cell cell);
  void unlink(Shard& shard, Cell cell);

  // The entry to go next, and its frequency; kNoCell where all are pinned.
  Cell victim(Shard& shard, std::uint32_t& heat);
  // Out of the index and the order of eviction; its cell is the caller's.
  void evict(Shard& shard, Cell cell);
  // A cell for a new entry, a victim's if need be: kNoCell where the shard has none, nothing where
  // the policy prefers the victim to `id`.
  std::optional<Cell> obtain(Shard& shard, NodeId id, bool must);
  // Evicts one entry of another shard. Called without a lock, as a thread holds one shard's at
  // most.
  bool make_room(std::size_t other_than);
  // Out of a cell that is to go: to another if it is pinned or outweighs what is there.
  void relocate(Shard& shard, Cell from);
  void relocate_page(Shard& shard, Cell& page);
  bool is_pinned(Cell cell) const { return (slab.at(cell)[cache::kLength] & cache::kPinned) != 0; }

  // Where the frequency of `id` is; null where its page is not made.
  Heat* heat_of(Shard& shard, NodeId id, bool make);
  void note(Shard& shard, NodeId id, std::size_t depth);
  void age(Shard& shard);  // halves one page

  void require_fits(std::span<const NodeId> list) const {
    if (list.size() > degree) {
      throw Error(ErrorKind::bad_input, "a list of " + std::to_string(list.size()) +
                                            " edges in a cache for " + std::to_string(degree));
    }
  }
  std::size_t shard_count() const { return std::size_t{shard_mask} + 1; }

  const CachePolicy policy;
  const std::size_t degree, header, buckets;  // buckets: of a shard, like the following
  const std::uint32_t pages;
  const NodeId shard_mask;
  const unsigned shard_bits;
  const std::uint32_t heats_a_page;
  cache::Slab slab;
  const std::unique_ptr<Shard[]> shards;
  std::function<void(NodeId, std::size_t)> sink;
};

}  // namespace navis
