// Insert: seek, prune, log, change lists in memory; pages are written later (NAVIS, position
// seeking with selective vector reads; OdinANN, direct insert).
#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>

#include "bytes.hpp"
#include "code_rows.hpp"
#include "index.hpp"
#include "index_detail.hpp"

namespace navis {
namespace {

constexpr std::size_t kNoRow = std::numeric_limits<std::size_t>::max();

}  // namespace

// What was decided from the search's findings; checked again under the commit lock.
struct Index::Plan {
  struct Back {
    NodeId id;
    std::vector<NodeId> base;  // the neighbour's list as it was seen
    std::size_t victim;        // position in it; = degree when there is room
    bool known;                // false: not expanded by the search, base is to be looked up
  };
  std::vector<NodeId> list;  // of the new node
  std::vector<Back> back;
  std::vector<std::uint8_t> code;
  std::vector<float> working;
  std::vector<float> table;  // of quantizers newer than the search's
  CodeRows rows;
  std::vector<Neighbour> expanded;  // for the entrance graph
};

// Which entry a full list loses to the newcomer, by PQ distances alone (delta prune).
std::size_t Index::victim(CodeRows& rows, NodeId owner, std::span<const NodeId> list) {
  // Deleted nodes go first: they are on their way out anyway.
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (!store_->is_live(list[i])) return i;
  }
  rows.make_room(list.size() + 1);
  const std::size_t own = rows.find(owner);
  std::vector<Neighbour> entries;
  std::vector<std::size_t> row_of;
  entries.reserve(list.size());
  row_of.reserve(list.size());
  for (const NodeId id : list) {
    row_of.push_back(rows.find(id));
    entries.push_back({id, rows.distance(own, row_of.back())});
  }
  return delta_prune_victim(
      entries, [&](std::size_t i) { return rows.to_newcomer(row_of[i]); }, rows.to_newcomer(own),
      store_->options.alpha,
      [&](std::size_t a, std::size_t b) { return rows.distance(row_of[a], row_of[b]); });
}

void Index::plan_insert(Traversal& t, const std::byte* raw, Plan& plan) {
  Store& s = *store_;
  const Quantized& q = t.quantized();
  const std::size_t dim = s.space.dim(), degree = s.options.degree;
  plan.working.resize(dim);
  s.space.stored(raw, plan.working.data());
  plan.code.resize(q.pq.subspaces());
  q.pq.encode_from_table(t.table().data(), plan.code.data());
  plan.rows.begin(q, t.table().data());

  // Candidates: what was expanded, with true distances where the vector was read, and what others
  // have inserted while this search was under way.
  struct Candidate {
    Neighbour node;
    const Expanded* expanded = nullptr;
    const float* vector = nullptr;
    std::size_t row = kNoRow;  // once it is in plan.rows
  };
  std::vector<Candidate> candidates;
  std::vector<std::pair<NodeId, const Exact*>> exact;
  for (const Exact& e : t.exact()) exact.emplace_back(e.node.id, &e);
  std::sort(exact.begin(), exact.end());
  // What codes leave out of a squared distance on average, once for each end that is a code.
  // Without it those not read would occlude one another, and the new node would be left with few
  // edges.
  double left_out = 0;
  std::size_t compared = 0;
  auto add = [&](NodeId id, float distance, const Expanded* expanded) {
    if (!s.is_live(id)) return;
    Candidate c{{id, distance}, expanded, nullptr};
    const auto at =
        std::lower_bound(exact.begin(), exact.end(), std::pair{id, (const Exact*)nullptr});
    if (at != exact.end() && at->first == id) {
      c.node.distance = at->second->node.distance;
      left_out += static_cast<double>(c.node.distance - distance);
      ++compared;
      c.vector = t.vector(*at->second);
    }
    candidates.push_back(c);
  };
  plan.expanded.clear();
  for (const Expanded& e : t.expanded()) {
    add(e.node.id, e.node.distance, &e);
    plan.expanded.push_back(e.node);
  }
  std::vector<NodeId> recent;
  {
    std::lock_guard lock(recent_mutex_);
    recent.assign(recent_.begin(), recent_.end());
  }
  for (const NodeId id : recent) {
    const bool met = std::any_of(t.expanded().begin(), t.expanded().end(),
                                 [&](const Expanded& e) { return e.node.id == id; });
    if (met) continue;
    const std::uint8_t* code = q.code(id);
    float distance = 0;
    kernels::adc(t.table().data(), q.pq.subspaces(), &code, 1, &distance);
    add(id, distance, nullptr);
  }
  const float missing =
      compared ? static_cast<float>(std::max(0.0, left_out / static_cast<double>(compared))) : 0.0F;
  for (Candidate& c : candidates) {
    if (!c.vector) c.node.distance += missing;
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.node < b.node; });

  std::vector<Neighbour> sorted;
  sorted.reserve(candidates.size());
  for (const Candidate& c : candidates) sorted.push_back(c.node);
  // True where both were read, else from the vector or code of one to the other's; rows are made
  // only when a comparison needs them: most candidates are settled by the first few.
  plan.rows.make_room(candidates.size());
  const auto row_of = [&](Candidate& c) {
    if (c.row == kNoRow) c.row = c.vector ? plan.rows.add(c.vector) : plan.rows.find(c.node.id);
    return c.row;
  };
  const auto kept =
      robust_prune(sorted, degree, s.options.alpha, false, [&](std::size_t a, std::size_t b) {
        Candidate &one = candidates[a], &other = candidates[b];
        if (one.vector && other.vector) return kernels::l2(one.vector, other.vector, dim);
        const int codes = (one.vector ? 0 : 1) + (other.vector ? 0 : 1);
        return plan.rows.distance(row_of(one), row_of(other)) + static_cast<float>(codes) * missing;
      });
  plan.list.clear();
  plan.back.clear();
  for (const std::size_t i : kept) {
    const Candidate& c = candidates[i];
    plan.list.push_back(c.node.id);
    Plan::Back back{c.node.id, {}, degree, c.expanded != nullptr};
    if (c.expanded) {
      const auto list = t.list(*c.expanded);
      back.base.assign(list.begin(), list.end());
      if (list.size() >= degree) {
        back.victim = victim(plan.rows, c.node.id, list);
      }
    }
    plan.back.push_back(std::move(back));
  }
}

// The list of a node as it is now, and in the packed layout its vector. Under the commit lock.
// False when the node's list is held nowhere (it was never written).
bool Index::current_list(Traversal& t, NodeId id, std::vector<NodeId>& list,
                         std::vector<std::byte>& vector) {
  Store& s = *store_;
  const std::uint32_t location = s.location[id].load(std::memory_order_acquire);
  if (location == kPendingLoc) {
    return s.lists.find(id, [&](const PendingEntry& e) {
      list = e.list;
      vector = e.vector;
    });
  }
  if (location == kNoLoc) return false;
  for (const Expanded& e : t.expanded()) {
    if (e.node.id != id || e.location != location) continue;
    const auto seen = t.list(e);
    list.assign(seen.begin(), seen.end());
    if (!s.packed()) return true;
    for (const Exact& x : t.exact()) {
      if (x.node.id != id) continue;
      vector.assign(t.raw(x), t.raw(x) + s.space.raw_bytes());
      return true;
    }
  }
  // It has moved between the search and now: rare enough to read under the lock.
  s.counters.stale_retries.fetch_add(1, std::memory_order_relaxed);
  const std::size_t bytes = s.format.unit_bytes();
  shorthaul::uring::Buffer buffer(bytes);
  const std::uint32_t unit = s.unit_of(location);
  s.pages.read_at(s.unit_offset(unit), buffer.span(0, bytes));
  s.check_unit(unit, buffer.data());
  const PageView page(s.format, buffer.data());
  const std::size_t slot = s.slot_of(location);
  const auto read = page.list(slot);
  list.assign(read.begin(), read.end());
  if (s.packed()) vector.assign(page.vector(slot), page.vector(slot) + s.space.raw_bytes());
  return true;
}

// The list of a node becomes this one, in memory; its old place is given up.
void Index::change_list(NodeId id, std::vector<NodeId> list, std::vector<std::byte> vector,
                        std::uint64_t lsn) {
  Store& s = *store_;
  const std::uint32_t old = s.location[id].load(std::memory_order_acquire);
  if (s.cache && old != kNoLoc) s.cache->update(id, list);
  s.lists.put(id, [&](PendingEntry& e) {
    e.list = std::move(list);
    if (!vector.empty()) e.vector = std::move(vector);
    e.version = lsn;
    if (old != kPendingLoc) e.base_location = old;
  });
  s.location[id].store(kPendingLoc, std::memory_order_release);
  if (old != kPendingLoc && old != kNoLoc) s.units.moved_out(s.unit_of(old));
}

bool Index::commit_insert(Traversal& t, std::uint64_t id, const std::byte* raw, Plan& plan,
                          std::span<const std::uint32_t> labels, double value) {
  Store& s = *store_;
  const std::size_t degree = s.options.degree, raw_bytes = s.space.raw_bytes();
  std::lock_guard lock(commit_);
  const auto quantized = s.quantized();  // under the lock: retrain() replaces it

  const NodeId replaced = id_map_.find(id);
  // A freed node first: no list names it, and no reader is left who could.
  const NodeId rows = s.rows.load(std::memory_order_relaxed);
  const NodeId node = free_nodes_.count() ? static_cast<NodeId>(free_nodes_.next(0)) : rows;
  s.grow(node + 1);
  quantized->codes.grow(node + 1);
  if (quantized.get() != &t.quantized()) {  // retrained since the search
    quantized->pq.encode(plan.working.data(), plan.code.data());
    plan.table.resize(quantized->pq.subspaces() * 256);
    quantized->pq.table(plan.working.data(), plan.table.data());
    plan.rows.begin(*quantized, plan.table.data());
  }

  struct Change {
    NodeId id;
    std::vector<NodeId> list;
    std::vector<std::byte> vector;
  };
  std::vector<Change> changes;
  std::erase_if(plan.list, [&](NodeId n) { return !s.is_live(n) || n == replaced; });
  NodeId joined = kNoNode;
  if (const NodeId medoid = s.medoid.load(std::memory_order_relaxed);
      plan.list.empty() && medoid != kNoNode) {  // two first inserts at once: they shall be joined
    joined = medoid;
    // Not to a dead one: compaction relies on nobody naming what was deleted before.
    if (s.is_live(medoid)) plan.list.push_back(medoid);
    plan.back.push_back({medoid, {}, degree, false});
  }
  for (Plan::Back& back : plan.back) {
    if ((!s.is_live(back.id) || back.id == replaced) && back.id != joined) continue;
    Change change{back.id, {}, {}};
    if (!current_list(t, back.id, change.list, change.vector)) continue;
    if (change.list.size() < degree) {
      change.list.push_back(node);
    } else {
      const bool unchanged = back.known && change.list == back.base && back.victim < degree;
      const std::size_t out = unchanged ? back.victim : victim(plan.rows, back.id, change.list);
      change.list[out] = node;
    }
    changes.push_back(std::move(change));
  }

  ByteWriter record;
  record.put(node);
  record.put(id);
  record.put(replaced);
  record.put_bytes(raw, raw_bytes);
  record.put_bytes(plan.code.data(), plan.code.size());
  record.put_list(node, plan.list);
  record.put(static_cast<std::uint32_t>(changes.size()));
  for (const Change& c : changes) record.put_list(c.id, c.list);
  Attributes::put(record, labels, value);
  const std::uint64_t lsn =
      wal_->append(static_cast<std::uint32_t>(RecordType::insert), record.bytes());

  if (node < rows) {
    free_nodes_.clear(node);
    s.unused.fetch_sub(1, std::memory_order_relaxed);
  }
  // The node first, then the edges to it: who can reach it finds it whole.
  std::copy(plan.code.begin(), plan.code.end(), quantized->codes.row(node));
  s.external[node] = id;
  s.checksum[node] = crc32c(0, raw, raw_bytes);
  s.attributes.set(node, labels, value);
  std::vector<std::byte> vector(raw, raw + raw_bytes);
  s.location[node].store(kNoLoc, std::memory_order_relaxed);
  if (s.packed()) {
    change_list(node, plan.list, std::move(vector), lsn);
  } else {
    s.vector_slot[node].store(kNoSlot, std::memory_order_relaxed);
    s.fresh.put(node, [&](std::vector<std::byte>& v) { v = std::move(vector); });
    change_list(node, plan.list, {}, lsn);
  }
  if (replaced != kNoNode) {
    id_map_.erase(id);
    s.state[replaced].store(NodeState::deleted, std::memory_order_release);
    s.attributes.clear(replaced);
    s.entrance.erase(*quantized, replaced);
  } else {
    s.live.fetch_add(1, std::memory_order_relaxed);
  }
  s.state[node].store(NodeState::live, std::memory_order_release);
  id_map_.insert(node);
  if (node == rows) s.rows.store(node + 1, std::memory_order_release);
  for (Change& c : changes) change_list(c.id, std::move(c.list), std::move(c.vector), lsn);
  if (s.medoid.load(std::memory_order_relaxed) == kNoNode) {
    s.medoid.store(node, std::memory_order_release);
  }
  {
    std::lock_guard recent(recent_mutex_);
    recent_.push_back(node);
    if (recent_.size() > 32) recent_.pop_front();
  }
  if (s.session.entrance == EntranceMode::dynamic) {
    const auto bound = static_cast<std::size_t>(
        std::max(1.0F, s.options.entrance_share * static_cast<float>(s.live.load())));
    // Below the bound whoever lies apart is taken, and anyone when it lags; at the bound only what
    // lies in a region of its own displaces another.
    const auto& found = t.entrance();
    const std::size_t size = s.entrance.size();
    const float nearest =
        found.empty() ? std::numeric_limits<float>::max() : found.front().node.distance;
    const bool take = size < bound ? s.entrance.uncovered(nearest) || size * 20 < bound * 19
                                   : size == bound && s.entrance.uncovered(nearest / 4);
    if (take && s.entrance.promote(*quantized, node, found, plan.expanded, bound)) {
      s.counters.entrance_promotions.fetch_add(1, std::memory_order_relaxed);
    }
  }
  absorb(t);
  s.counters.inserts.fetch_add(1, std::memory_order_relaxed);
  return replaced != kNoNode;
}

// Pages met on the way that are half empty or more give their lists up, to be written together
// with the changed ones, so that the whole page becomes free. Costs no read.
void Index::absorb(Traversal& t) {
  Store& s = *store_;
  const std::size_t per_unit = s.format.per_unit();
  if (per_unit < 2 || s.units.used() * per_unit * 10 < s.held() * std::size_t{13}) return;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> sparse;  // live lists, unit
  for (const auto& [unit, bytes] : t.held_units()) {
    const std::uint32_t live = s.units.live(unit);
    if (live > 0 && live * 2 <= per_unit) sparse.emplace_back(live, unit);
  }
  std::sort(sparse.begin(), sparse.end());
  if (sparse.size() > 2) sparse.resize(2);
  for (const auto& [live, unit] : sparse) {
    const PageView page(s.format, t.held_units().at(unit));
    for (std::size_t slot = 0; slot < page.slots(); ++slot) {
      const NodeId id = page.id(slot);
      const auto here = static_cast<std::uint32_t>(unit * per_unit + slot);
      if (s.location[id].load(std::memory_order_acquire) != here) continue;
      const auto list = page.list(slot);
      std::vector<std::byte> vector;
      if (s.packed()) vector.assign(page.vector(slot), page.vector(slot) + s.space.raw_bytes());
      // Version 0: not in the log, which need not know where a list lies.
      change_list(id, {list.begin(), list.end()}, std::move(vector), 0);
      s.counters.absorbed_lists.fetch_add(1, std::memory_order_relaxed);
    }
    s.counters.absorbed_units.fetch_add(1, std::memory_order_relaxed);
  }
}

std::size_t Index::insert(const std::uint64_t* ids, const std::byte* raw, std::size_t n,
                          std::size_t threads, const AttributeRows& attributes) {
  const Use use(*this, true);
  attributes.check(n);
  require_budget();
  warm();
  Store& s = *store_;
  const std::size_t raw_bytes = s.space.raw_bytes();
  std::atomic<std::size_t> next{0}, replaced{0};
  std::atomic<bool> cut{false};
  // Where codes tell little, as of real text, the margin alone would read nearly all. With less
  // than half, pruning by codes leaves more of the new vectors without a way in; and without codes
  // all are read.
  const bool all = s.packed() || s.quantized()->pq.blank();
  const Rerank rerank{10, 0.85F, all ? UINT32_MAX : s.options.insert_list / 2};
  auto work = [&] {
    auto lease = lane();
    std::vector<float> working(s.space.dim());
    std::vector<std::size_t> job(8);
    Plan plan;
    lease->run(
        s.session.in_flight,
        [&](Traversal& t) {
          const std::size_t i = next.fetch_add(1);
          if (i >= n) return false;
          if (closed_) {
            cut = true;
            return false;
          }
          job[t.slot] = i;
          s.space.stored(raw + i * raw_bytes, working.data());
          t.begin(working.data(), 10, s.options.insert_list, rerank, Traversal::Purpose::seek);
          return true;
        },
        [&](Traversal& t) {
          const std::size_t i = job[t.slot];
          plan_insert(t, raw + i * raw_bytes, plan);
          if (commit_insert(t, ids[i], raw + i * raw_bytes, plan, attributes.labels_of(i),
                            attributes.value_of(i))) {
            replaced.fetch_add(1);
          }
          t.release();
          maintain();
        });
  };
  run_threads(std::min(threads, n), work);
  if (cut) require_open(true);
  wal_->commit(wal_->next_lsn() - 1);
  return replaced;
}

}  // namespace navis
