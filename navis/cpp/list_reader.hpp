// Many edge lists at once, as they are now, for whoever goes through all of them.
#pragma once

#include <span>
#include <unordered_map>
#include <vector>

#include "lane.hpp"
#include "pending.hpp"

namespace navis {

// Holds the epoch from the first read to release(): a location that is still a node's own then
// says that its list has not changed since it was copied. For one thread.
class ListReader {
 public:
  // `cached` false: from the file even what the cache holds.
  ListReader(Store& store, Lane& lane, bool cached = true);

  // Appends the lists of these nodes, in any order; those without one are left out, and with
  // `tolerant` those on a damaged unit, which otherwise is Error(corrupt). With `vectors` and the
  // packed layout their vectors as well.
  void read(std::span<const NodeId> ids, bool vectors, bool tolerant, std::vector<ListCopy>& out);
  // The same of all lists that are in these units, ascending. Damaged ones are left out.
  void read_units(std::span<const std::uint32_t> units, bool vectors, std::vector<ListCopy>& out);
  // Units that are read together.
  std::size_t batch() const { return capacity_; }
  void release();

 private:
  void fetch(std::span<const std::uint32_t> units);
  ListCopy copy(const PageView& page, std::size_t slot, std::uint32_t location, bool vectors) const;

  Store& store_;
  Lane& lane_;
  bool cached_;
  Epochs::Guard guard_;
  bool guarded_ = false;
  std::size_t capacity_;
  shorthaul::uring::Buffer buffer_;
  std::unordered_map<std::uint32_t, std::byte*> held_;  // null: damaged
};

}  // namespace navis
