#include "list_reader.hpp"

#include <algorithm>

namespace navis {

namespace {

constexpr std::size_t kHeldBytes = 1024 * 1024;

}  // namespace

ListReader::ListReader(Store& store, Lane& lane, bool cached)
    : store_(store),
      lane_(lane),
      cached_(cached && store.cache),
      capacity_(std::max<std::size_t>(16, kHeldBytes / store.format.unit_bytes())),
      buffer_(capacity_ * store.format.unit_bytes()) {}

void ListReader::release() {
  held_.clear();
  guard_.release();
  guarded_ = false;
}

// Units as held_; at most capacity_ of them.
void ListReader::fetch(std::span<const std::uint32_t> units) {
  std::vector<std::uint32_t> wanted;
  for (const std::uint32_t u : units) {
    if (!held_.contains(u)) wanted.push_back(u);
  }
  if (held_.size() + wanted.size() > capacity_) {
    held_.clear();
    wanted.assign(units.begin(), units.end());
  }
  const std::size_t bytes = store_.format.unit_bytes();
  std::byte* at = buffer_.data() + held_.size() * bytes;
  std::vector<ReadRequest> reads;
  for (std::size_t i = 0; i < wanted.size(); ++i, at += bytes) {
    held_[wanted[i]] = at;
    if (i > 0 && wanted[i] == wanted[i - 1] + 1 &&
        reads.back().bytes + bytes <= IoBudget::kPortion) {
      reads.back().bytes += bytes;
    } else {
      reads.push_back({&store_.pages, store_.unit_offset(wanted[i]), bytes, at});
    }
  }
  store_.budget.take(wanted.size() * bytes);
  lane_.read(reads);
  store_.counters.flush_reads.fetch_add(reads.size(), std::memory_order_relaxed);
  for (const std::uint32_t u : wanted) {
    if (!PageView(store_.format, held_[u]).fault(u).empty()) held_[u] = nullptr;
  }
}

ListCopy ListReader::copy(const PageView& page, std::size_t slot, std::uint32_t location,
                          bool vectors) const {
  ListCopy copy{page.id(slot), location, {}};
  const auto list = page.list(slot);
  copy.entry.list.assign(list.begin(), list.end());
  if (vectors && store_.packed()) {
    copy.entry.vector.assign(page.vector(slot), page.vector(slot) + store_.space.raw_bytes());
  }
  return copy;
}

void ListReader::read(std::span<const NodeId> ids, bool vectors, bool tolerant,
                      std::vector<ListCopy>& out) {
  if (!guarded_) guard_ = store_.epochs.enter_guard();
  guarded_ = true;
  std::vector<std::pair<std::uint32_t, NodeId>> wanted;
  std::vector<NodeId> list(store_.options.degree);
  for (const NodeId id : ids) {
    std::uint32_t at;
    bool pending = false;
    do {
      at = store_.location[id].load(std::memory_order_acquire);
      if (at != kPendingLoc) break;
      pending = store_.lists.find(
          id, [&](const PendingEntry& entry) { out.push_back({id, kPendingLoc, entry}); });
    } while (!pending);  // written in this moment: the location has changed
    if (pending || at == kNoLoc) continue;
    const int length = cached_ ? store_.cache->peek(id, list.data()) : -1;
    if (length >= 0) {
      out.push_back({id, at, {}});
      out.back().entry.list.assign(list.begin(), list.begin() + length);
    } else {
      wanted.emplace_back(at, id);
    }
  }
  std::sort(wanted.begin(), wanted.end());
  for (std::size_t first = 0; first < wanted.size();) {
    std::vector<std::uint32_t> units;
    std::size_t last = first;
    for (; last < wanted.size(); ++last) {
      const std::uint32_t unit = store_.unit_of(wanted[last].first);
      if (!units.empty() && units.back() == unit) continue;
      if (units.size() == capacity_) break;
      units.push_back(unit);
    }
    fetch(units);
    for (; first < last; ++first) {
      const auto [at, id] = wanted[first];
      const std::uint32_t unit = store_.unit_of(at);
      const std::byte* bytes = held_[unit];
      const std::size_t slot = store_.slot_of(at);
      if (bytes) {
        const PageView page(store_.format, bytes);
        if (slot < page.slots() && page.id(slot) == id) {
          out.push_back(copy(page, slot, at, vectors));
          continue;
        }
      }
      if (tolerant) continue;
      throw Error(ErrorKind::corrupt, store_.pages.path().string() + ": the list of id " +
                                          std::to_string(store_.external[id]) + " at byte " +
                                          std::to_string(store_.unit_offset(unit)) +
                                          " is damaged; run navis repair");
    }
  }
}

void ListReader::read_units(std::span<const std::uint32_t> units, bool vectors,
                            std::vector<ListCopy>& out) {
  // The epoch first: a unit with lists in it then stays as it is until it is left. (One that had
  // been free before could be written behind the read, and the table point into it.)
  if (!guarded_) guard_ = store_.epochs.enter_guard();
  guarded_ = true;
  const NodeId rows = store_.rows.load(std::memory_order_acquire);
  for (std::size_t first = 0; first < units.size();) {
    std::vector<std::uint32_t> some;
    for (; first < units.size() && some.size() < capacity_; ++first) {
      if (store_.units.live(units[first]) > 0) some.push_back(units[first]);
    }
    fetch(some);
    for (const std::uint32_t unit : some) {
      if (!held_[unit]) continue;
      const PageView page(store_.format, held_[unit]);
      for (std::size_t slot = 0; slot < page.slots(); ++slot) {
        const NodeId id = page.id(slot);
        const auto here = static_cast<std::uint32_t>(unit * store_.format.per_unit() + slot);
        if (id >= rows || store_.location[id].load(std::memory_order_acquire) != here) continue;
        out.push_back(copy(page, slot, here, vectors));
      }
    }
  }
}

}  // namespace navis
