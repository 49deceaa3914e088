// From memory to pages: changed lists, new vectors, checkpoints.
#include <algorithm>
#include <unordered_map>

#include "index.hpp"
#include "index_detail.hpp"
#include "packing.hpp"
#include "section_file.hpp"

namespace navis {

namespace {

constexpr std::size_t kFlips = 1024;  // places changed before others get the lock

}  // namespace

// An order of lists in which those that will be read one after the other share a unit.
std::vector<std::size_t> Index::packing_order(const std::vector<ListCopy>& lists) const {
  const std::size_t per_unit = store_->format.per_unit();
  if (per_unit < 2) return given_order(lists.size());
  std::unordered_map<NodeId, NodeId> position;
  for (std::size_t i = 0; i < lists.size(); ++i) position[lists[i].id] = static_cast<NodeId>(i);
  std::vector<std::vector<NodeId>> neighbours(lists.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    for (const NodeId to : lists[i].entry.list) {
      // What is not among them keeps its place in the list, which is its weight.
      const auto at = position.find(to);
      neighbours[i].push_back(at == position.end() ? kNoNode : at->second);
    }
  }
  return pack_pages(lists.size(), per_unit, 0,
                    [&](std::size_t i) -> std::span<const NodeId> { return neighbours[i]; });
}

// Writes every changed list to fresh units, adjacent lists together, then points the table there.
void Index::flush_lists(Lane& lane, bool commit_held) {
  Store& s = *store_;
  std::vector<NodeId> ids = s.lists.ids();
  std::sort(ids.begin(), ids.end());
  std::vector<ListCopy> lists;
  lists.reserve(ids.size());
  for (const NodeId id : ids) {
    s.lists.find(id, [&](const PendingEntry& e) { lists.push_back({id, kPendingLoc, e}); });
  }
  const auto order = s.session.share_pages ? packing_order(lists) : given_order(lists.size());
  place_lists(lane, lists, order, false, commit_held);
}

// Writes lists to fresh units in this order; then the table points there for those that nobody has
// changed or moved meanwhile.
void Index::place_lists(Lane& lane, const std::vector<ListCopy>& lists,
                        const std::vector<std::size_t>& order, bool lowest, bool commit_held) {
  Store& s = *store_;
  if (lists.empty()) return;
  const std::size_t per_unit = s.format.per_unit(), unit_bytes = s.format.unit_bytes();
  const std::vector<std::uint32_t> units =
      s.units.allocate((lists.size() + per_unit - 1) / per_unit, lowest);
  std::vector<std::uint32_t> target(lists.size());
  // In batches, so that the buffer stays small however much has changed.
  const std::size_t batch = std::max<std::size_t>(1, std::size_t{1024} * 1024 / unit_bytes);
  shorthaul::uring::Buffer buffer(std::min(batch, units.size()) * unit_bytes);
  for (std::size_t first = 0; first < units.size(); first += batch) {
    const std::size_t count = std::min(batch, units.size() - first);
    std::vector<Lane::WriteRequest> writes;
    for (std::size_t u = 0; u < count; ++u) {
      PageWriter page(s.format, buffer.span(u * unit_bytes, unit_bytes));
      std::uint64_t newest = 0;
      for (std::size_t i = (first + u) * per_unit;
           i < std::min(lists.size(), (first + u + 1) * per_unit); ++i) {
        const ListCopy& list = lists[order[i]];
        target[order[i]] = static_cast<std::uint32_t>(units[first + u] * per_unit + page.filled());
        newest = std::max(newest, list.entry.version);
        page.add(list.id, list.entry.vector.data(), list.entry.vector.size(), list.entry.list);
      }
      page.finish(units[first + u], newest);
      const bool continues = u > 0 && units[first + u] == units[first + u - 1] + 1 &&
                             writes.back().bytes.size() + unit_bytes <= IoBudget::kPortion;
      if (continues) {
        writes.back().bytes = {writes.back().bytes.data(), writes.back().bytes.size() + unit_bytes};
      } else {
        writes.push_back(
            {&s.pages, s.unit_offset(units[first + u]), buffer.span(u * unit_bytes, unit_bytes)});
      }
    }
    try {
      lane.write(writes);
    } catch (...) {
      s.units.settle(units);
      throw;
    }
    s.counters.flush_edge_writes.fetch_add(writes.size(), std::memory_order_relaxed);
    s.counters.flush_edge_pages.fetch_add(count * unit_bytes / kPageBytes,
                                          std::memory_order_relaxed);
  }
  s.counters.flush_lists.fetch_add(lists.size(), std::memory_order_relaxed);

  // One list more in each while lists move in: what moves in may move out before the last has come,
  // and must not take the unit with it.
  for (const std::uint32_t unit : units) s.units.moved_in(unit);
  std::unique_lock lock(commit_, std::defer_lock);
  for (std::size_t i = 0; i < lists.size(); ++i) {
    if (!commit_held && i % kFlips == 0) {
      if (lock.owns_lock()) lock.unlock();
      lock.lock();
    }
    const NodeId id = lists[i].id;
    if (lists[i].from != kPendingLoc) {
      if (s.location[id].load(std::memory_order_acquire) != lists[i].from) continue;
      s.units.moved_in(s.unit_of(target[i]));
      s.location[id].store(target[i], std::memory_order_release);
      s.units.moved_out(s.unit_of(lists[i].from));
      continue;
    }
    bool same = false;
    s.lists.change(id, [&](PendingEntry& e) {
      same = e.version == lists[i].entry.version;
      // Changed again meanwhile, so it goes with the next flush. A checkpoint taken before that
      // refers to what was written now: the log has the list, but a packed record's vector may be
      // nowhere else, as the unit it had before is given up when the checkpoint is complete.
      if (!same) e.base_location = target[i];
    });
    if (!same) continue;
    s.units.moved_in(s.unit_of(target[i]));
    s.location[id].store(target[i], std::memory_order_release);
    s.lists.erase(id);
    if (s.cache) s.cache->offer(id, lists[i].entry.list, [] { return true; });
  }
  for (const std::uint32_t unit : units) s.units.moved_out(unit);
}

// Moves the lists of the sparsest units into memory, to be written with the next flush, when too
// much of the file is holes. Lists that the cache holds cost no read. True when there were any.
bool Index::clean_units(Lane& lane) {
  Store& s = *store_;
  const std::size_t per_unit = s.format.per_unit(), unit_bytes = s.format.unit_bytes();
  if (per_unit < 2 ||
      s.units.used() * per_unit * 10 < s.held() * std::size_t{14} + 640 * per_unit) {
    return false;
  }
  constexpr std::size_t kUnits = 64;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> sparse;  // live lists, unit
  const auto size = static_cast<std::uint32_t>(s.units.size());
  for (std::uint32_t u = 0; u < size; ++u) {
    const std::uint32_t live = s.units.live(u);
    if (live > 0 && live * 4 <= per_unit * 3) sparse.emplace_back(live, u);
  }
  const std::size_t count = std::min(kUnits, sparse.size());
  if (count == 0) return false;
  std::partial_sort(sparse.begin(), sparse.begin() + static_cast<std::ptrdiff_t>(count),
                    sparse.end());
  sparse.resize(count);
  std::unordered_map<std::uint32_t, std::vector<NodeId>> residents;
  for (const auto& [live, unit] : sparse) residents[unit];
  const NodeId rows = s.rows.load(std::memory_order_acquire);
  for (NodeId id = 0; id < rows; ++id) {
    const std::uint32_t at = s.location[id].load(std::memory_order_acquire);
    if (at == kPendingLoc || at == kNoLoc) continue;
    if (const auto r = residents.find(s.unit_of(at)); r != residents.end()) {
      r->second.push_back(id);
    }
  }
  const auto guard = s.epochs.enter_guard();
  shorthaul::uring::Buffer buffer(count * unit_bytes);
  std::unordered_map<std::uint32_t, const std::byte*> pages;
  std::vector<ReadRequest> reads;
  for (const auto& [unit, ids] : residents) {
    const bool held = s.cache && std::all_of(ids.begin(), ids.end(),
                                             [&](NodeId id) { return s.cache->contains(id); });
    if (held) continue;
    std::byte* at = buffer.data() + reads.size() * unit_bytes;
    reads.push_back({&s.pages, s.unit_offset(unit), unit_bytes, at});
    pages[unit] = at;
  }
  lane.read(reads);
  s.counters.flush_reads.fetch_add(reads.size(), std::memory_order_relaxed);
  for (const auto& [unit, bytes] : pages) s.check_unit(unit, bytes);

  std::lock_guard lock(commit_);
  std::vector<NodeId> list(s.options.degree);
  for (const auto& [unit, ids] : residents) {
    const auto page = pages.find(unit);
    for (const NodeId id : ids) {
      const std::uint32_t at = s.location[id].load(std::memory_order_acquire);
      if (at == kPendingLoc || s.unit_of(at) != unit) continue;
      std::vector<std::byte> vector;
      if (page != pages.end()) {
        const PageView view(s.format, page->second);
        const std::size_t slot = s.slot_of(at);
        const auto read = view.list(slot);
        list.assign(read.begin(), read.end());
        if (s.packed()) {
          vector.assign(view.vector(slot), view.vector(slot) + s.space.raw_bytes());
        }
      } else {
        list.resize(s.options.degree);
        const int length = s.cache->peek(id, list.data());
        if (length < 0) continue;  // gone from the cache meanwhile; another time
        list.resize(static_cast<std::size_t>(length));
      }
      change_list(id, list, std::move(vector), 0);
    }
  }
  s.counters.cleaned_units.fetch_add(count, std::memory_order_relaxed);
  return true;
}

// Called by writers after a change: keeps what is pending, the log and the unused space bounded.
void Index::maintain() {
  Store& s = *store_;
  keep_within_budget();
  const std::size_t pending = s.lists.size();
  if (pending >= pending_limit_) {
    // One writer flushes; the others go on unless they are far ahead of it.
    std::unique_lock lock(flush_, std::defer_lock);
    if (pending >= 2 * pending_limit_) {
      lock.lock();
    } else if (!lock.try_lock()) {
      return;
    }
    if (s.lists.size() >= pending_limit_) {
      auto lease = lane();
      clean_units(*lease);
      flush_lists(*lease);
      flush_vectors(*lease, false);
    }
  }
  const std::size_t minimal = s.held() / s.format.per_unit() + 1;
  const bool much_space = s.units.awaiting_checkpoint() * 10 > minimal * 3 + 640;
  if (much_space || wal_->bytes_on_disk() > checkpoint_bytes_) {
    if (std::unique_lock lock(checkpoint_, std::try_to_lock); lock) {
      lock.unlock();
      checkpoint();
    }
  }
}

void Index::flush() {
  const Use use(*this, true);
  wal_->flush();
}

void Index::checkpoint() {
  const Use use(*this, true);
  std::lock_guard one(checkpoint_);
  take_checkpoint();
}

// Gives the LSN from which the log is to be replayed on it. Under the checkpoint lock.
std::uint64_t Index::take_checkpoint() {
  Store& s = *store_;
  auto lease = lane();
  std::uint64_t begin_lsn;
  {
    // What is in the log before this is in the state file after it.
    std::lock_guard lock(commit_);
    begin_lsn = wal_->rotate();
    s.checkpoint_begins();
  }
  try {
    std::lock_guard lock(flush_);
    flush_lists(*lease);
    flush_vectors(*lease, true);
  } catch (...) {
    s.checkpoint_ends(false);
    throw;
  }
  finish_checkpoint(begin_lsn, commit_, nullptr);
  return begin_lsn;
}

// Writes the state file and gives back what only the older one needed. With `retrained`, these
// codes are in the file and then take the place of the index's: the log's records have codes of the
// quantizer that the state file has, whatever fails.
void Index::finish_checkpoint(std::uint64_t begin_lsn, std::mutex& commit,
                              const std::shared_ptr<Quantized>& retrained) {
  Store& s = *store_;
  try {
    state_bytes_ =
        save_state(s, retrained ? retrained : s.quantized(), begin_lsn, commit, wal_.get());
  } catch (...) {
    s.checkpoint_ends(false);
    throw;
  }
  if (retrained) {
    s.quantize(retrained);
    s.entrance.build(*retrained, s.entrance.ids(), 1);
  }
  wal_->remove_before(begin_lsn);
  s.checkpoint_ends(true);
  s.counters.checkpoints.fetch_add(1, std::memory_order_relaxed);
  s.counters.checkpoint_bytes.fetch_add(state_bytes_, std::memory_order_relaxed);
}

// Codes of every vector by another quantizer; writers wait, readers go on with the old codes.
void Index::retrain(const ProductQuantizer& quantizer) {
  const Use use(*this, true);
  Store& s = *store_;
  if (quantizer.dim() != s.space.dim()) {
    throw Error(ErrorKind::bad_input, "the quantizer has another dimension than the index");
  }
  std::scoped_lock one(checkpoint_, flush_, commit_);
  auto lease = lane();
  const std::uint64_t begin_lsn = wal_->rotate();
  s.checkpoint_begins();
  auto quantized = std::make_shared<Quantized>(quantizer);
  try {
    flush_lists(*lease, true);
    flush_vectors(*lease, true);
    const NodeId rows = s.rows;
    quantized->codes.grow(rows);
    std::vector<std::byte> raw(s.space.raw_bytes());
    std::vector<float> working(s.space.dim());
    for (NodeId id = 0; id < rows; ++id) {
      if (s.state[id] == NodeState::free) continue;
      s.read_vector(id, raw.data());
      s.space.stored(raw.data(), working.data());
      quantizer.encode(working.data(), quantized->codes.row(id));
    }
  } catch (...) {
    s.checkpoint_ends(false);
    throw;
  }
  std::mutex held;
  finish_checkpoint(begin_lsn, held, quantized);
}

}  // namespace navis
