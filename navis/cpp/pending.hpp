// What has changed (and is in the log) but is not yet on its page: readers look here first.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "types.hpp"

namespace navis {

struct PendingEntry {
  std::vector<NodeId> list;
  std::vector<std::byte> vector;  // packed layout: the record's other half
  std::uint64_t version = 0;      // grows with every change of this entry
  // Where the last written list is; what a checkpoint taken now refers to.
  std::uint32_t base_location = 0xFFFFFFFF;
};

// A list as it was read, and where: what its move, or a change of it, is checked against.
struct ListCopy {
  NodeId id;
  std::uint32_t from;  // its location then
  PendingEntry entry;  // the version counts where it was pending
};

// A map by node, in shards with short locks; one writer at a time, any number of readers.
template <class Entry>
class Pending {
 public:
  // Calls read(entry) under the shard's lock; false when there is none.
  template <class Read>
  bool find(NodeId id, Read&& read) const {
    const Shard& shard = of(id);
    std::lock_guard lock(shard.mutex);
    const auto found = shard.entries.find(id);
    if (found == shard.entries.end()) return false;
    read(found->second);
    return true;
  }
  // Calls write(entry) on the entry, made if absent; true when it was.
  template <class Write>
  bool put(NodeId id, Write&& write) {
    Shard& shard = of(id);
    std::lock_guard lock(shard.mutex);
    const auto [entry, made] = shard.entries.try_emplace(id);
    write(entry->second);
    if (made) size_.fetch_add(1, std::memory_order_relaxed);
    return made;
  }
  // Calls write(entry) where there is one.
  template <class Write>
  void change(NodeId id, Write&& write) {
    Shard& shard = of(id);
    std::lock_guard lock(shard.mutex);
    const auto found = shard.entries.find(id);
    if (found != shard.entries.end()) write(found->second);
  }
  void erase(NodeId id) {
    Shard& shard = of(id);
    std::lock_guard lock(shard.mutex);
    if (shard.entries.erase(id)) size_.fetch_sub(1, std::memory_order_relaxed);
  }
  std::vector<NodeId> ids() const {
    std::vector<NodeId> all;
    all.reserve(size());
    for (const Shard& shard : shards_) {
      std::lock_guard lock(shard.mutex);
      for (const auto& [id, entry] : shard.entries) all.push_back(id);
    }
    return all;
  }
  std::size_t size() const { return size_.load(std::memory_order_relaxed); }

 private:
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<NodeId, Entry> entries;
  };
  static constexpr std::size_t kShards = 64;
  Shard& of(NodeId id) { return shards_[id % kShards]; }
  const Shard& of(NodeId id) const { return shards_[id % kShards]; }

  std::array<Shard, kShards> shards_;
  std::atomic<std::size_t> size_{0};
};

}  // namespace navis
