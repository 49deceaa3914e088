#include "cache.hpp"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "cache_impl.hpp"

namespace navis {
namespace {

using cache::Cell;
using cache::header_words;
using cache::Heat;
using cache::kId;
using cache::kLength;
using cache::kNewer;
using cache::kNext;
using cache::kNoCell;
using cache::kOlder;
using cache::kPinned;
using cache::Shard;
using cache::shard_bytes;

constexpr std::size_t kMostShards = 64;
constexpr std::size_t kShardEntries = 256;  // fewer shards rather than smaller ones
constexpr std::size_t kMostHeatShare = 4;   // frequencies take at most this part of the cells

std::size_t divide_up(std::size_t count, std::size_t by) { return (count + by - 1) / by; }

std::size_t shards_for(std::size_t entries) {
  return std::clamp<std::size_t>(std::bit_floor(entries / kShardEntries), 1, kMostShards);
}

std::size_t cell_words(std::size_t degree, CachePolicy policy) {
  return header_words(policy) + degree;
}

}  // namespace

EdgeCache::Impl::Sizes EdgeCache::Impl::for_budget(std::size_t budget, std::size_t degree,
                                                   CachePolicy policy) {
  Sizes sizes;
  if (policy == CachePolicy::none) return sizes;
  const std::size_t cell_bytes = cell_words(degree, policy) * sizeof(std::uint32_t);
  sizes.shards = shards_for(budget / cell_bytes);
  const auto pages_for = [&](std::size_t cells) {
    if (policy != CachePolicy::lfu || cells < 2) return std::size_t{0};
    return divide_up(std::max<std::size_t>(1, cells / kMostHeatShare), sizes.shards);
  };
  const auto bytes_for = [&](std::size_t cells) {
    return sizeof(Impl) + cells * cell_bytes +
           sizes.shards * shard_bytes(divide_up(cells, sizes.shards), pages_for(cells));
  };
  // From too many down: a cell's share of the tables is less than two words.
  std::size_t cells = std::min<std::size_t>(budget / cell_bytes, kNoNode);
  while (cells > 0 && bytes_for(cells) > budget) {
    const std::size_t over = bytes_for(cells) - budget;
    cells -= std::min(cells, 1 + over / (cell_bytes + 2 * sizeof(Cell)));
  }
  sizes.pages_a_shard = pages_for(cells);
  if (cells == 0) sizes.shards = 1;
  sizes.cells = sizes.entry_limit = cells;
  return sizes;
}

EdgeCache::Impl::Sizes EdgeCache::Impl::for_entries(std::size_t entries, std::size_t ids,
                                                    CachePolicy policy) {
  Sizes sizes;
  if (policy == CachePolicy::none) return sizes;
  sizes.shards = shards_for(entries);
  const std::size_t heats = cell_words(1, policy) * sizeof(std::uint32_t) / sizeof(Heat);
  if (policy == CachePolicy::lfu) {
    sizes.pages_a_shard = divide_up(divide_up(ids, sizes.shards), heats);
  }
  sizes.entry_limit = entries;
  sizes.cells = entries + sizes.shards * sizes.pages_a_shard;
  return sizes;
}

EdgeCache::Impl::Impl(Sizes given, std::size_t most_edges, CachePolicy chosen, std::uint64_t seed)
    : policy(chosen),
      degree(most_edges),
      header(header_words(chosen)),
      buckets(std::max<std::size_t>(1, divide_up(given.entry_limit, given.shards))),
      pages(static_cast<std::uint32_t>(given.pages_a_shard)),
      shard_mask(static_cast<NodeId>(given.shards - 1)),
      shard_bits(static_cast<unsigned>(std::bit_width(given.shards) - 1)),
      heats_a_page(static_cast<std::uint32_t>(cell_words(most_edges, chosen) *
                                              sizeof(std::uint32_t) / sizeof(Heat))),
      slab(cell_words(most_edges, chosen), given.cells, given.entry_limit),
      shards(std::make_unique<Shard[]>(given.shards)) {
  for (std::size_t i = 0; i < given.shards; ++i) {
    shards[i].heads = std::make_unique<Cell[]>(buckets);
    shards[i].pages = std::make_unique<Cell[]>(pages);
    shards[i].random = seed + (std::uint64_t{i} << 32U);
  }
}

Cell EdgeCache::Impl::lookup(const Shard& shard, NodeId id) const {
  Cell cell = shard.heads[bucket_of(id)];
  while (cell != kNoCell && slab.at(cell)[kId] != id) cell = slab.at(cell)[kNext];
  return cell;
}

void EdgeCache::Impl::put(Cell cell, std::span<const NodeId> list, bool pinned) {
  std::uint32_t* words = slab.at(cell);
  words[kLength] = static_cast<std::uint32_t>(list.size()) | (pinned ? kPinned : 0);
  std::copy(list.begin(), list.end(), words + header);
}

int EdgeCache::Impl::copy(Cell cell, NodeId* out) const {
  const std::uint32_t* words = slab.at(cell);
  const std::uint32_t length = words[kLength] & ~kPinned;
  std::copy_n(words + header, length, out);
  return static_cast<int>(length);
}

void EdgeCache::Impl::insert(Shard& shard, Cell cell, NodeId id, std::span<const NodeId> list,
                             bool pinned) {
  Cell& head = shard.heads[bucket_of(id)];
  slab.at(cell)[kId] = id;
  slab.at(cell)[kNext] = head;
  head = cell;
  put(cell, list, pinned);
  if (!pinned) link(shard, cell);
}

void EdgeCache::Impl::remove(Shard& shard, Cell cell) {
  const std::uint32_t* words = slab.at(cell);
  Cell* at = &shard.heads[bucket_of(words[kId])];
  while (*at != cell) at = &slab.at(*at)[kNext];
  *at = words[kNext];
  if (!is_pinned(cell)) unlink(shard, cell);
}

void EdgeCache::Impl::link(Shard& shard, Cell cell) {
  ++shard.evictable;
  if (policy != CachePolicy::lru) return;
  slab.at(cell)[kNewer] = kNoCell;
  slab.at(cell)[kOlder] = shard.newest;
  (shard.newest == kNoCell ? shard.oldest : slab.at(shard.newest)[kNewer]) = cell;
  shard.newest = cell;
}

void EdgeCache::Impl::unlink(Shard& shard, Cell cell) {
  --shard.evictable;
  if (policy != CachePolicy::lru) return;
  const Cell newer = slab.at(cell)[kNewer], older = slab.at(cell)[kOlder];
  (newer == kNoCell ? shard.newest : slab.at(newer)[kOlder]) = older;
  (older == kNoCell ? shard.oldest : slab.at(older)[kNewer]) = newer;
}

EdgeCache::EdgeCache(std::size_t budget_bytes, std::size_t degree, CachePolicy policy,
                     std::uint64_t seed)
    : impl_(std::make_unique<Impl>(Impl::for_budget(budget_bytes, degree, policy), degree, policy,
                                   seed)) {}
EdgeCache::EdgeCache(Exactly exactly, CachePolicy policy, std::uint64_t seed)
    : impl_(std::make_unique<Impl>(Impl::for_entries(exactly.entries, exactly.ids, policy), 1,
                                   policy, seed)) {}
EdgeCache::~EdgeCache() = default;

int EdgeCache::find(NodeId id, std::size_t depth, NodeId* out) {
  Impl& impl = *impl_;
  Shard& shard = impl.shard_of(id);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  if (impl.sink) impl.sink(id, depth);
  if (impl.policy == CachePolicy::lfu) impl.note(shard, id, depth);
  const Cell cell = impl.lookup(shard, id);
  if (cell == kNoCell) {
    ++shard.counters.misses;
    return -1;
  }
  ++shard.counters.hits;
  if (impl.is_pinned(cell)) {
    ++shard.counters.pinned_hits;
  } else if (impl.policy == CachePolicy::lru && shard.newest != cell) {
    impl.unlink(shard, cell);
    impl.link(shard, cell);
  }
  return impl.copy(cell, out);
}

int EdgeCache::peek(NodeId id, NodeId* out) const {
  const Shard& shard = impl_->shard_of(id);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  const Cell cell = impl_->lookup(shard, id);
  return cell == kNoCell ? -1 : impl_->copy(cell, out);
}

bool EdgeCache::contains(NodeId id) const {
  const Shard& shard = impl_->shard_of(id);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  return impl_->lookup(shard, id) != kNoCell;
}

void EdgeCache::offer(NodeId id, std::span<const NodeId> list,
                      const std::function<bool()>& current) {
  Impl& impl = *impl_;
  impl.require_fits(list);
  if (impl.policy == CachePolicy::none) return;
  Shard& shard = impl.shard_of(id);
  // A shard that has nothing to give up takes from another, once.
  for (const bool retried : {false, true}) {
    {
      const std::lock_guard<std::mutex> lock(shard.mutex);
      if (current && !current()) return;
      const Cell cell = impl.lookup(shard, id);
      if (cell != kNoCell) {
        const bool pinned = impl.is_pinned(cell);
        impl.put(cell, list, pinned);
        if (!pinned) {
          impl.unlink(shard, cell);
          impl.link(shard, cell);
        }
        return;
      }
      const auto obtained = impl.obtain(shard, id, false);
      if (!obtained) {
        ++shard.counters.rejected;
        return;
      }
      if (*obtained != kNoCell) {
        impl.insert(shard, *obtained, id, list, false);
        ++shard.counters.admitted;
        return;
      }
    }
    if (retried || !impl.make_room(id & impl.shard_mask)) break;
  }
  const std::lock_guard<std::mutex> lock(shard.mutex);
  ++shard.counters.rejected;
}

void EdgeCache::update(NodeId id, std::span<const NodeId> list) {
  impl_->require_fits(list);
  Shard& shard = impl_->shard_of(id);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  const Cell cell = impl_->lookup(shard, id);
  if (cell != kNoCell) impl_->put(cell, list, impl_->is_pinned(cell));
}

void EdgeCache::erase(NodeId id) {
  Shard& shard = impl_->shard_of(id);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  const Cell cell = impl_->lookup(shard, id);
  if (cell == kNoCell) return;
  impl_->remove(shard, cell);
  impl_->slab.give_entry(cell);
}

bool EdgeCache::pin(NodeId id, std::span<const NodeId> list) {
  Impl& impl = *impl_;
  impl.require_fits(list);
  if (impl.policy == CachePolicy::none) return false;
  Shard& shard = impl.shard_of(id);
  do {
    const std::lock_guard<std::mutex> lock(shard.mutex);
    Cell cell = impl.lookup(shard, id);
    if (cell != kNoCell) {
      if (!impl.is_pinned(cell)) impl.unlink(shard, cell);
      impl.put(cell, list, true);
      return true;
    }
    cell = impl.obtain(shard, id, true).value_or(kNoCell);
    if (cell != kNoCell) {
      impl.insert(shard, cell, id, list, true);
      return true;
    }
  } while (impl.make_room(id & impl.shard_mask));
  return false;
}

void EdgeCache::unpin(NodeId id) {
  Shard& shard = impl_->shard_of(id);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  const Cell cell = impl_->lookup(shard, id);
  if (cell == kNoCell || !impl_->is_pinned(cell)) return;
  impl_->slab.at(cell)[kLength] &= ~kPinned;
  impl_->link(shard, cell);
}

std::size_t EdgeCache::entries() const { return impl_->slab.entries(); }
std::size_t EdgeCache::capacity() const { return impl_->slab.capacity(); }

std::size_t EdgeCache::memory_bytes() const {
  if (impl_->slab.capacity() == 0) return 0;
  return sizeof(Impl) + impl_->slab.bytes() +
         impl_->shard_count() * shard_bytes(impl_->buckets, impl_->pages);
}

std::size_t EdgeCache::limit_bytes() const {
  return sizeof(Impl) + impl_->slab.cells() * impl_->slab.cell_bytes() +
         impl_->shard_count() * shard_bytes(impl_->buckets, impl_->pages);
}

void EdgeCache::shrink(std::size_t bytes) {
  Impl& impl = *impl_;
  const std::size_t cells = impl.slab.cells();
  const std::size_t fewer = divide_up(bytes, impl.slab.cell_bytes());
  impl.slab.lower(cells - std::min(cells, fewer));
  std::vector<Cell> beyond;
  for (std::size_t i = 0; i < impl.shard_count(); ++i) {
    Shard& shard = impl.shards[i];
    const std::lock_guard<std::mutex> lock(shard.mutex);
    for (std::size_t p = 0; p < impl.pages; ++p) {
      if (!impl.slab.holds(shard.pages[p])) impl.relocate_page(shard, shard.pages[p]);
    }
    beyond.clear();
    for (std::size_t b = 0; b < impl.buckets; ++b) {
      for (Cell cell = shard.heads[b]; cell != kNoCell; cell = impl.slab.at(cell)[kNext]) {
        if (!impl.slab.holds(cell)) beyond.push_back(cell);
      }
    }
    for (const Cell cell : beyond) {
      // It may have made room for one before it.
      if (impl.lookup(shard, impl.slab.at(cell)[kId]) == cell) impl.relocate(shard, cell);
    }
  }
  impl.slab.release_rest();
}

CacheCounters EdgeCache::counters() const {
  CacheCounters sum;
  for (std::size_t i = 0; i < impl_->shard_count(); ++i) {
    const Shard& shard = impl_->shards[i];
    const std::lock_guard<std::mutex> lock(shard.mutex);
    const CacheCounters& its = shard.counters;
    sum.hits += its.hits;
    sum.misses += its.misses;
    sum.admitted += its.admitted;
    sum.rejected += its.rejected;
    sum.evicted += its.evicted;
    sum.pinned_hits += its.pinned_hits;
  }
  return sum;
}

void EdgeCache::record(std::function<void(NodeId, std::size_t)> sink) {
  impl_->sink = std::move(sink);
}

}  // namespace navis
