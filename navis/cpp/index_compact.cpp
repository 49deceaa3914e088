// Compaction, first half: edges to deleted nodes go, then the nodes.
#include "index_compact.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "bytes.hpp"

namespace navis {

namespace {

constexpr std::size_t kPiece = 4096;     // nodes looked at under one lock
constexpr std::size_t kSweep = 512;      // lists read by node
constexpr std::size_t kGroup = 32;       // lists changed by one record of the log
constexpr std::size_t kReleased = 512;   // nodes freed by one
constexpr std::size_t kCandidates = 64;  // heirs considered for a list
constexpr std::uint64_t kWindowBytes = 32U << 20U;

}  // namespace

Compaction::Compaction(Index& index, const Progress& progress, std::size_t window)
    : index_(index),
      s_(*index.store_),
      progress_(progress),
      lane_(index.lane()),
      reader_(s_, *lane_),
      window_(window) {
  if (window_ > 0) return;
  // A list of a window is held twice, and its edges once more while it is packed.
  const std::size_t list_bytes =
      13 * s_.options.degree + 250 + (s_.packed() ? s_.space.raw_bytes() : 0);
  const std::uint64_t budget = s_.session.memory_budget;
  const std::uint64_t bytes = budget ? std::min(budget / 32, kWindowBytes) : kWindowBytes;
  window_ = std::clamp<std::size_t>(bytes / list_bytes, 1024, 65536);
}

void Index::compact(const Progress& progress, std::size_t window) {
  const Use use(*this, true);
  std::unique_lock one(compact_, std::try_to_lock);
  if (!one) throw Error(ErrorKind::bad_input, "this index is being compacted already: wait for it");
  Compaction(*this, progress, window).run();
}

void Compaction::run() {
  collect_dead();
  clean();
  free_dead();
  forget_lost_entrances();
  // From here on the places of what was freed may be written again.
  index_.checkpoint();
  wait_for_readers();
  move_vectors();
  walk();
  densify();
  fold_tail();
  report(3, 0);
}

void Compaction::report(std::size_t phase, std::size_t done) {
  const std::size_t rows = std::max<std::size_t>(1, rows_);
  reported_ = std::max(reported_, phase * rows + std::min(done, rows));
  index_.require_open(true);
  if (progress_ && !progress_(reported_, 3 * rows)) {
    throw Error(ErrorKind::closed, "the compaction was stopped; what it has done stays");
  }
}

void Compaction::wait_for_readers() {
  const std::uint64_t stamp = s_.epochs.retire();
  for (std::size_t waited = 0; !s_.epochs.passed(stamp); ++waited) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (waited % 64 == 63) report(0, 0);
  }
}

// In pieces, so that nobody waits for all of it. A list that names a node deleted before the last
// piece was committed before it, as commits add edges to live nodes only; so by a node that was not
// free then. Hence two rounds.
void Compaction::collect_dead() {
  auto pieces = [&](NodeId rows, auto&& each) {
    for (NodeId first = 0; first < rows; first += kPiece) {
      std::lock_guard lock(index_.commit_);
      for (NodeId id = first; id < std::min<std::size_t>(rows, first + kPiece); ++id) {
        each(id, s_.state[id].load(std::memory_order_relaxed));
      }
    }
  };
  const NodeId before = s_.rows.load(std::memory_order_acquire);
  dead_ = Bits(before);
  pieces(before, [&](NodeId id, NodeState state) {
    if (state == NodeState::deleted) dead_.set(id);
  });
  rows_ = s_.rows.load(std::memory_order_acquire);
  dead_.resize(rows_);
  seen_ = Bits(rows_);
  pieces(rows_, [&](NodeId id, NodeState state) {
    if (state == NodeState::free || dead_.test(id)) seen_.set(id);
  });
}

// Goes through all lists in the order of the file, then through those that were in memory or have
// moved meanwhile.
void Compaction::clean() {
  if (dead_.count() == 0) return;
  std::vector<ListCopy> lists;
  const auto size = static_cast<std::uint32_t>(s_.units.size());
  for (std::uint32_t unit = 0; unit < size;) {
    std::vector<std::uint32_t> units;
    while (unit < size && units.size() < reader_.batch()) units.push_back(unit++);
    lists.clear();
    reader_.read_units(units, true, lists);
    heal(lists);
    report(0, seen_.count());
  }
  while (seen_.count() < rows_) {
    for (std::size_t at = seen_.next_absent(0); at < rows_;) {
      std::vector<NodeId> ids;
      for (; at < rows_ && ids.size() < kSweep; at = seen_.next_absent(at + 1)) {
        ids.push_back(static_cast<NodeId>(at));
      }
      lists.clear();
      reader_.read(ids, true, false, lists);
      heal(lists);
      report(0, seen_.count());
    }
  }
}

// Lists that name a dead node get its live neighbours instead, as far as they need them.
void Compaction::heal(std::vector<ListCopy>& lists) {
  std::vector<const ListCopy*> torn;
  std::vector<NodeId> gone;
  for (const ListCopy& copy : lists) {
    if (copy.id >= rows_ || seen_.test(copy.id)) continue;
    const std::size_t before = gone.size();
    for (const NodeId to : copy.entry.list) {
      if (dead_.test(to)) gone.push_back(to);
    }
    if (gone.size() == before) {
      seen_.set(copy.id);  // no list comes to name a node that is dead already
    } else {
      torn.push_back(&copy);
    }
  }
  std::sort(gone.begin(), gone.end());
  gone.erase(std::unique(gone.begin(), gone.end()), gone.end());
  Heirs heirs;
  std::vector<ListCopy> theirs;
  for (std::size_t first = 0; first < gone.size(); first += kSweep) {
    theirs.clear();
    // What a damaged page held of dead nodes is not missed.
    reader_.read(std::span(gone).subspan(first, std::min(kSweep, gone.size() - first)), false, true,
                 theirs);
    for (const ListCopy& copy : theirs) {
      auto& live = heirs[copy.id];
      for (const NodeId to : copy.entry.list) {
        if (s_.is_live(to)) live.push_back(to);
      }
    }
  }
  const auto q = s_.quantized();
  for (std::size_t first = 0; first < torn.size(); first += kGroup) {
    const std::size_t count = std::min(kGroup, torn.size() - first);
    std::vector<std::vector<NodeId>> mended;
    for (std::size_t i = 0; i < count; ++i) mended.push_back(mend(*q, *torn[first + i], heirs));
    commit(std::span(torn).subspan(first, count), mended);
  }
  reader_.release();
  index_.maintain();
}

// The list without dead nodes, and with those of their neighbours that nothing nearer in it
// occludes (as FreshDiskANN's consolidation, but what is there already stays).
std::vector<NodeId> Compaction::mend(const Quantized& q, const ListCopy& copy,
                                     const Heirs& heirs) const {
  const std::size_t dim = q.pq.dim();
  std::vector<float> own(dim), vectors;
  q.pq.decode(q.code(copy.id), own.data());
  auto distance_to = [&](NodeId id) {
    vectors.resize(vectors.size() + dim);
    float* vector = vectors.data() + vectors.size() - dim;
    q.pq.decode(q.code(id), vector);
    return kernels::l2(own.data(), vector, dim);
  };
  std::vector<NodeId> list, others;
  for (const NodeId to : copy.entry.list) {
    if (!dead_.test(to)) {
      list.push_back(to);
    } else if (const auto found = heirs.find(to); found != heirs.end()) {
      others.insert(others.end(), found->second.begin(), found->second.end());
    }
  }
  std::sort(others.begin(), others.end());
  others.erase(std::unique(others.begin(), others.end()), others.end());
  std::erase_if(others, [&](NodeId id) {
    return id == copy.id || std::find(list.begin(), list.end(), id) != list.end();
  });
  std::vector<Neighbour> kept, wanted;  // id: position of its vector
  std::vector<NodeId> names;
  auto place = [&](std::vector<Neighbour>& into, NodeId id) {
    into.push_back({static_cast<NodeId>(names.size()), distance_to(id)});
    names.push_back(id);
  };
  for (const NodeId id : list) place(kept, id);
  for (const NodeId id : others) place(wanted, id);
  std::sort(wanted.begin(), wanted.end());
  if (wanted.size() > kCandidates) wanted.resize(kCandidates);
  const float alpha2 = s_.options.alpha * s_.options.alpha;
  for (const Neighbour& heir : wanted) {
    if (list.size() >= s_.options.degree) break;
    const float* vector = vectors.data() + heir.id * dim;
    const bool occluded = std::any_of(kept.begin(), kept.end(), [&](const Neighbour& k) {
      return k.distance < heir.distance &&
             alpha2 * kernels::l2(vectors.data() + k.id * dim, vector, dim) <= heir.distance;
    });
    if (occluded) continue;
    kept.push_back(heir);
    list.push_back(names[heir.id]);
  }
  return list;
}

// Whether a list is still as it was copied. Under the commit lock.
bool Compaction::current(const ListCopy& copy) const {
  if (s_.location[copy.id].load(std::memory_order_acquire) != copy.from) return false;
  if (copy.from != kPendingLoc) return true;
  bool same = false;
  s_.lists.find(copy.id, [&](const PendingEntry& e) { same = e.version == copy.entry.version; });
  return same;
}

// Those changed by others meanwhile stay unseen, and their turn comes again.
void Compaction::commit(std::span<const ListCopy* const> copies,
                        const std::vector<std::vector<NodeId>>& lists) {
  std::lock_guard lock(index_.commit_);
  std::vector<ListCopy> changes;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    const ListCopy& copy = *copies[i];
    if (!current(copy)) continue;
    changes.push_back({copy.id, copy.from, {{}, copy.entry.vector}});
    // An heir may have been deleted meanwhile: nobody comes to name a dead node.
    const auto& old = copy.entry.list;
    for (const NodeId id : lists[i]) {
      if (s_.is_live(id) || std::find(old.begin(), old.end(), id) != old.end()) {
        changes.back().entry.list.push_back(id);
      }
    }
    seen_.set(copy.id);
  }
  index_.log_lists(std::move(changes));
}

// A dead medoid is replaced by the live node nearest to it, if there is one.
void Compaction::choose_medoid() {
  for (;;) {
    const NodeId old = s_.medoid.load(std::memory_order_acquire);
    if (old != kNoNode && s_.is_live(old)) return;
    std::vector<NodeId> candidates;
    {
      std::lock_guard lock(index_.commit_);
      candidates = s_.entrance.ids();
    }
    const auto guard = s_.epochs.enter_guard();  // codes of freed nodes may be written
    std::erase_if(candidates, [&](NodeId id) { return !s_.is_live(id); });
    if (candidates.empty()) {
      for (NodeId id = 0; id < s_.rows.load(std::memory_order_acquire); ++id) {
        if (s_.is_live(id)) candidates.push_back(id);
      }
    }
    const auto q = s_.quantized();
    std::vector<float> own(q->pq.dim()), other(q->pq.dim());
    if (old != kNoNode) q->pq.decode(q->code(old), own.data());
    Neighbour best{kNoNode, std::numeric_limits<float>::infinity()};
    for (const NodeId id : candidates) {
      q->pq.decode(q->code(id), other.data());
      best = std::min(best, Neighbour{id, kernels::l2(own.data(), other.data(), own.size())});
    }
    std::lock_guard lock(index_.commit_);
    if (s_.medoid != old) continue;
    if (best.id == kNoNode && s_.live > 0) continue;  // the first has just come
    if (best.id != kNoNode && !s_.is_live(best.id)) continue;
    s_.medoid = best.id;
    return;
  }
}

// No list names the dead any more, but readers may be on their way to them: they are waited for.
void Compaction::free_dead() {
  if (dead_.count() == 0) return;
  choose_medoid();
  {
    std::lock_guard recent(index_.recent_mutex_);
    std::erase_if(index_.recent_, [&](NodeId id) { return dead_.test(id); });
  }
  wait_for_readers();
  for (std::size_t next = dead_.next(0); next < rows_;) {
    // No flush is under way that could write for a node what belongs to its successor.
    std::lock_guard flush(index_.flush_);
    std::lock_guard lock(index_.commit_);
    std::vector<NodeId> nodes;
    for (; next < rows_ && nodes.size() < kReleased; next = dead_.next(next + 1)) {
      nodes.push_back(static_cast<NodeId>(next));
    }
    // Logged before the records of whoever takes the nodes, behind those that took the edges to
    // them away. The medoid is in it because a checkpoint may know an older one only.
    ByteWriter record;
    record.put(s_.medoid.load());
    record.put(static_cast<std::uint32_t>(nodes.size()));
    for (const NodeId id : nodes) record.put(id);
    index_.wal_->append(static_cast<std::uint32_t>(RecordType::release), record.bytes());
    std::vector<std::uint32_t> slots;
    for (const NodeId id : nodes) {
      index_.release_node(id, slots);
      index_.free_nodes_.resize(std::max<std::size_t>(index_.free_nodes_.size(), rows_));
      index_.free_nodes_.set(id);
      s_.unused.fetch_add(1, std::memory_order_relaxed);
    }
    s_.slots.release(std::move(slots));
  }
}

// A node that nothing refers to any more gives its places back. Its slot is the caller's to
// release. Under the commit lock, or at replay.
void Index::release_node(NodeId id, std::vector<std::uint32_t>& slots) {
  Store& s = *store_;
  s.state[id].store(NodeState::free, std::memory_order_release);
  const std::uint32_t at = s.location[id].exchange(kNoLoc, std::memory_order_acq_rel);
  if (at == kPendingLoc) {
    s.lists.erase(id);
  } else if (at != kNoLoc) {
    s.units.moved_out(s.unit_of(at));
  }
  if (s.cache) s.cache->erase(id);
  if (s.packed()) return;
  s.fresh.erase(id);
  const std::uint32_t slot = s.vector_slot[id].exchange(kNoSlot, std::memory_order_acq_rel);
  if (slot != kNoSlot) slots.push_back(slot);
}

// These lists become their nodes', and the log knows. Under the commit lock.
void Index::log_lists(std::vector<ListCopy> changes) {
  if (changes.empty()) return;
  ByteWriter record;
  record.put(static_cast<std::uint32_t>(changes.size()));
  for (const ListCopy& c : changes) record.put_list(c.id, c.entry.list);
  const std::uint64_t lsn =
      wal_->append(static_cast<std::uint32_t>(RecordType::patch), record.bytes());
  for (ListCopy& c : changes) {
    change_list(c.id, std::move(c.entry.list), std::move(c.entry.vector), lsn);
  }
}

// Entrance nodes that no search of the entrance graph comes to cost memory and help nobody.
void Compaction::forget_lost_entrances() {
  std::lock_guard lock(index_.commit_);
  const auto q = s_.quantized();
  for (const NodeId id : lost_entrances(s_.entrance)) s_.entrance.erase(*q, id);
}

}  // namespace navis
