#include <algorithm>
#include <cstring>
#include <vector>

#include "cache_impl.hpp"

namespace navis {
namespace {

using cache::Cell;
using cache::Heat;
using cache::kId;
using cache::kNext;
using cache::kNoCell;
using cache::Shard;

constexpr std::size_t kSample = 8;
constexpr std::size_t kAgeAccesses = 10;  // halved after this many accesses an entry

// A frequency is a byte that counts in eighths of an access at depth 0, and of a fraction of an
// eighth chance decides. It saturates well above what an entry on the brink of eviction has: 16
// bits gained nothing on Zipf traces, quarters instead of eighths lost 1 to 3 % of the hits.
constexpr std::uint32_t kHeatOne = 8;
constexpr std::uint32_t kMostHeat = 255;

// splitmix64
std::uint64_t next_random(std::uint64_t& state) {
  std::uint64_t value = state += 0x9E3779B97F4A7C15U;
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31U);
}

}  // namespace

// LFU: the coldest of a few chains from a random one on, which are as good as random entries.
Cell EdgeCache::Impl::victim(Shard& shard, std::uint32_t& heat) {
  heat = 0;
  if (shard.evictable == 0) return kNoCell;
  if (policy == CachePolicy::lru) return shard.oldest;
  Cell coldest = kNoCell;
  std::size_t seen = 0;
  std::size_t bucket = next_random(shard.random) % buckets;
  for (std::size_t i = 0; i < buckets && seen < kSample; ++i) {
    for (Cell cell = shard.heads[bucket]; cell != kNoCell; cell = slab.at(cell)[kNext]) {
      if (is_pinned(cell)) continue;
      const Heat* its = heat_of(shard, slab.at(cell)[kId], false);
      const std::uint32_t its_heat = its == nullptr ? 0 : *its;
      if (coldest == kNoCell || its_heat < heat) {
        coldest = cell;
        heat = its_heat;
      }
      ++seen;
    }
    if (++bucket == buckets) bucket = 0;
  }
  return coldest;
}

void EdgeCache::Impl::evict(Shard& shard, Cell cell) {
  remove(shard, cell);
  ++shard.counters.evicted;
}

std::optional<Cell> EdgeCache::Impl::obtain(Shard& shard, NodeId id, bool must) {
  const Cell free = slab.take_entry();
  if (free != kNoCell) return free;
  std::uint32_t coldest = 0;
  const Cell cell = victim(shard, coldest);
  if (cell == kNoCell) return kNoCell;
  if (!must && policy == CachePolicy::lfu) {
    const Heat* heat = heat_of(shard, id, false);
    if (heat == nullptr || *heat <= coldest) return {};
  }
  evict(shard, cell);
  return cell;
}

bool EdgeCache::Impl::make_room(std::size_t other_than) {
  for (std::size_t i = 1; i < shard_count(); ++i) {
    Shard& shard = shards[(other_than + i) & shard_mask];
    const std::lock_guard<std::mutex> lock(shard.mutex);
    std::uint32_t heat = 0;
    const Cell cell = victim(shard, heat);
    if (cell == kNoCell) continue;
    evict(shard, cell);
    slab.give_entry(cell);
    return true;
  }
  return false;
}

void EdgeCache::Impl::relocate(Shard& shard, Cell from) {
  const NodeId id = slab.at(from)[kId];
  const bool pinned = is_pinned(from);
  std::vector<NodeId> list(degree);
  list.resize(static_cast<std::size_t>(copy(from, list.data())));
  const Heat* its = heat_of(shard, id, false);
  const std::uint32_t own = its == nullptr ? 0 : *its;
  remove(shard, from);
  slab.give_entry(from);
  Cell to = slab.take_entry();
  while (to == kNoCell) {
    std::uint32_t heat = 0;
    const Cell other = victim(shard, heat);
    // Of LRU all but the pinned go: which of two is older is not looked for.
    if (other == kNoCell || (!pinned && (policy == CachePolicy::lru || own <= heat))) break;
    evict(shard, other);
    if (slab.holds(other)) {
      to = other;
    } else {
      slab.give_entry(other);
    }
  }
  if (to == kNoCell) {
    ++shard.counters.evicted;
  } else {
    insert(shard, to, id, list, pinned);
  }
}

void EdgeCache::Impl::relocate_page(Shard& shard, Cell& page) {
  Cell to = slab.take_page();
  while (to == kNoCell) {
    std::uint32_t heat = 0;
    const Cell other = victim(shard, heat);
    if (other == kNoCell) break;
    evict(shard, other);
    if (slab.holds(other)) {
      slab.make_page();
      to = other;
    } else {
      slab.give_entry(other);
    }
  }
  if (to == kNoCell) {
    --shard.pages_made;
  } else {
    std::memcpy(slab.at(to), slab.at(page), heats_a_page * sizeof(Heat));
  }
  slab.give_page(page);
  page = to;
}

// Beyond the pages there may be, ids share.
Heat* EdgeCache::Impl::heat_of(Shard& shard, NodeId id, bool make) {
  if (pages == 0) return nullptr;
  Cell& page = shard.pages[local(id) / heats_a_page % pages];
  if (page == kNoCell) {
    if (!make) return nullptr;
    Cell cell = slab.take_page();
    if (cell == kNoCell) {
      std::uint32_t heat = 0;
      cell = victim(shard, heat);
      if (cell == kNoCell) return nullptr;
      evict(shard, cell);
      slab.make_page();
    }
    std::memset(slab.at(cell), 0, heats_a_page * sizeof(Heat));
    ++shard.pages_made;
    page = cell;
  }
  return reinterpret_cast<Heat*>(slab.at(page)) + local(id) % heats_a_page;
}

void EdgeCache::Impl::note(Shard& shard, NodeId id, std::size_t depth) {
  Heat* heat = heat_of(shard, id, true);
  if (heat == nullptr) return;
  // kHeatOne / (1 + 0.05 depth), in 1/256.
  const auto weight = static_cast<std::uint32_t>(std::uint64_t{kHeatOne} * 256 * 20 / (20 + depth));
  const auto chance = static_cast<std::uint32_t>(next_random(shard.random) & 255U);
  *heat = static_cast<Heat>(std::min(kMostHeat, *heat + ((weight + chance) >> 8U)));
  shard.ageing += shard.pages_made;
  for (; shard.ageing >= kAgeAccesses * buckets; shard.ageing -= kAgeAccesses * buckets) age(shard);
}

// All pages come round while the shard's entries are accessed ten times on average.
void EdgeCache::Impl::age(Shard& shard) {
  Cell page = kNoCell;
  while (page == kNoCell) {
    page = shard.pages[shard.page_to_age];
    shard.page_to_age = (shard.page_to_age + 1) % pages;
  }
  Heat* heats = reinterpret_cast<Heat*>(slab.at(page));
  for (std::size_t i = 0; i < heats_a_page; ++i) heats[i] = static_cast<Heat>(heats[i] / 2);
}

}  // namespace navis
