// The state of an open index that traversals read and writers change: files, location table, codes,
// pending changes, cache, entrance graph.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>

#include "attributes.hpp"
#include "cache.hpp"
#include "chunked.hpp"
#include "entrance.hpp"
#include "epoch.hpp"
#include "io_budget.hpp"
#include "options.hpp"
#include "page.hpp"
#include "pending.hpp"
#include "quantized.hpp"
#include "shared_slot.hpp"
#include "shorthaul/uring.hpp"
#include "units.hpp"
#include "vector_slots.hpp"
#include "working_space.hpp"

namespace navis {

// Where a node's list is: unit * per_unit + slot, or one of these.
inline constexpr std::uint32_t kPendingLoc = 0xFFFFFFFE;  // in Store::lists
inline constexpr std::uint32_t kNoLoc = 0xFFFFFFFF;
// A vector that is not in vectors.dat yet, but in Store::fresh.
inline constexpr std::uint32_t kNoSlot = 0xFFFFFFFF;

enum class NodeState : std::uint8_t {
  free,     // no vector, and no list names it: the next to be inserted may have it
  live,     //
  deleted,  // never a result; still walked through until compaction
};

// Where a vector lies in vectors.dat: the pages to read and the offset of the vector in them.
struct VectorPlace {
  std::uint64_t offset;
  std::size_t bytes;
  std::size_t skip;
};

struct Store {
  Store(std::filesystem::path folder, const IndexOptions& index, const OpenOptions& session);

  std::filesystem::path folder;
  IndexOptions options;
  OpenOptions session;
  WorkingSpace space;
  PageFormat format;
  shorthaul::uring::File pages;    // edges.dat, or records.dat of the packed layout
  shorthaul::uring::File vectors;  // selective layout only

  mutable Epochs epochs;  // entering is reading
  Units units;
  VectorSlots slots;  // selective layout only
  Entrance entrance;
  Attributes attributes;
  std::unique_ptr<EdgeCache> cache;  // selective layout only
  Counters counters;
  IoBudget budget;

  // By node. `rows` have been made; those whose state is not free hold a vector.
  std::atomic<std::uint32_t> rows{0};
  std::atomic<std::uint32_t> live{0};
  std::atomic<std::uint32_t> unused{0};  // rows whose state is free
  std::atomic<NodeId> medoid{kNoNode};
  ChunkedRows<std::atomic<std::uint32_t>> location;
  ChunkedRows<std::atomic<NodeState>> state;
  ChunkedRows<std::uint64_t> external;
  ChunkedRows<std::uint32_t> checksum;  // of the stored vector
  // Where the vector is in vectors.dat, selective layout only.
  ChunkedRows<std::atomic<std::uint32_t>> vector_slot;

  Pending<PendingEntry> lists;
  Pending<std::vector<std::byte>> fresh;  // vectors not yet in vectors.dat

  std::shared_ptr<Quantized> quantized() const { return quantized_.load(); }
  void quantize(std::shared_ptr<Quantized> q) { quantized_.store(std::move(q)); }

  bool packed() const { return options.layout == Layout::packed; }
  bool is_live(NodeId id) const {
    return state[id].load(std::memory_order_acquire) == NodeState::live;
  }
  // Rows that hold a vector.
  std::uint32_t held() const {
    return rows.load(std::memory_order_relaxed) - unused.load(std::memory_order_relaxed);
  }
  std::uint32_t unit_of(std::uint32_t location_) const {
    return location_ / static_cast<std::uint32_t>(format.per_unit());
  }
  std::size_t slot_of(std::uint32_t location_) const { return location_ % format.per_unit(); }
  std::uint64_t unit_offset(std::uint32_t unit) const {
    return std::uint64_t{unit} * format.unit_bytes();
  }
  // Vectors of a page, at least 1; more than one only when several fit.
  std::size_t vectors_per_page() const {
    const std::size_t fit = kPageBytes / space.raw_bytes();
    return fit ? fit : 1;
  }
  std::size_t vector_read_bytes() const {
    return (space.raw_bytes() + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
  VectorPlace vector_place(NodeId id) const {
    return slot_place(vector_slot[id].load(std::memory_order_acquire));
  }
  VectorPlace slot_place(std::uint32_t vector_slot_) const;
  // Around the collecting of a checkpoint's tables.
  void checkpoint_begins() {
    units.checkpoint_begins();
    slots.checkpoint_begins();
  }
  void checkpoint_ends(bool completed) {
    units.checkpoint_ends(completed);
    slots.checkpoint_ends(completed);
  }
  void grow(std::size_t nodes);
  // Throws Error(corrupt) naming file and unit unless the unit is whole.
  void check_unit(std::uint32_t unit, const std::byte* bytes) const;
  void check_vector(NodeId id, const std::byte* raw) const;
  bool vector_matches(NodeId id, const std::byte* raw) const {
    return crc32c(0, raw, space.raw_bytes()) == checksum[id];
  }
  // The stored vector of a node, wherever it is now; the caller holds an epoch guard.
  void read_vector(NodeId id, std::byte* raw) const;
  std::size_t table_bytes() const;

 private:
  SharedSlot<Quantized> quantized_;
  std::size_t slotted_ = 0;  // rows whose vector_slot has been set
};

}  // namespace navis
