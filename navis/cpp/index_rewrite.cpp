// Compaction, second half: lists in the order of the graph, no holes, and nobody out of reach.
#include <algorithm>
#include <functional>

#include "code_rows.hpp"
#include "index_compact.hpp"

namespace navis {

namespace {

constexpr std::size_t kBeam = 64;      // lists followed at once by the walk
constexpr std::size_t kAttached = 64;  // lost nodes whose place is sought at once
constexpr std::size_t kTried = 16;     // nodes asked to take a lost one in
constexpr int kRounds = 3;             // others may take the places that the tail was to go to

bool farther(const Neighbour& a, const Neighbour& b) { return b < a; }

}  // namespace

// Vectors from the end of the file to the holes before it.
void Compaction::move_vectors() {
  if (s_.packed()) return;
  const std::size_t limit = s_.slots.used();
  const std::size_t batch =
      std::max<std::size_t>(1, (std::size_t{1} << 20U) / s_.vector_read_bytes());
  std::vector<NodeId> nodes;
  bool room = true;
  for (NodeId id = 0; id < rows_ && room; ++id) {
    const std::uint32_t slot = s_.vector_slot[id].load(std::memory_order_acquire);
    if (slot == kNoSlot || slot < limit) continue;
    nodes.push_back(id);
    if (nodes.size() < batch) continue;
    room = index_.move_vectors(*lane_, nodes, limit) == nodes.size();
    nodes.clear();
    report(1, 0);
  }
  if (room && !nodes.empty()) index_.move_vectors(*lane_, nodes, limit);
}

// Follows the graph from the medoid: who is not met is joined to it, and the lists are rewritten in
// this order, one window of neighbours after the other.
void Compaction::walk() {
  met_ = Bits(rows_);
  placed_ = Bits(rows_);
  queued_ = Bits(rows_);
  for (NodeId id = 0; id < rows_; ++id) {
    // Whoever takes it from now on is written in good order anyway.
    if (s_.state[id].load(std::memory_order_acquire) == NodeState::free) placed_.set(id);
  }
  if (const NodeId medoid = s_.medoid.load(std::memory_order_acquire); medoid < rows_) {
    met_.set(medoid);
  }
  // The packed layout keeps the order it has: lists are written with their vectors, and fewer than
  // half a dozen share a unit.
  const bool place = !s_.packed() && s_.format.per_unit() > 1;
  std::vector<ListCopy> window;
  for (;;) {
    // Towards the end only pockets between windows are left: as many as fit make one.
    while (window.size() < window_) {
      const NodeId seed = next_seed();
      if (seed == kNoNode) break;
      gather(seed, window);
    }
    if (window.empty()) {
      if (attach()) continue;
      // Deleted meanwhile, and nobody has an edge to them.
      const std::size_t left = placed_.next_absent(0);
      if (left == rows_) break;
      met_.set(left);
      continue;
    }
    if (place) {
      const auto q = s_.quantized();
      for (ListCopy& copy : window) sort_nearest(*q, copy);
      index_.place_lists(*lane_, window, index_.packing_order(window), true, false);
    }
    reader_.release();
    window.clear();
    // So that what has been left is written again, and the file does not grow to twice its size.
    if (s_.units.awaiting_checkpoint() * 4 > s_.units.used() + 256) index_.checkpoint();
    report(1, placed_.count());
  }
}

// Where the walk goes on: next to where it has been, or at anyone met.
NodeId Compaction::next_seed() {
  if (next_ != kNoNode && !placed_.test(next_)) return next_;
  // Round and round: there may be many pockets, and each is not worth a search from the start.
  std::size_t id = met_.next_without(placed_, seed_from_);
  if (id >= rows_) id = met_.next_without(placed_, 0);
  seed_from_ = id;
  return id < rows_ ? static_cast<NodeId>(id) : kNoNode;
}

// Reads the lists around a seed, nearest first by PQ distance, as edges lead there.
void Compaction::gather(NodeId seed, std::vector<ListCopy>& window) {
  const auto q = s_.quantized();
  std::vector<float> table(q->pq.subspaces() * 256), own(q->pq.dim()), distances;
  q->pq.decode(q->code(seed), own.data());
  q->pq.table(own.data(), table.data());
  std::vector<const std::uint8_t*> scratch;
  std::vector<Neighbour> queue{{seed, 0}};
  queued_.set(seed);
  std::vector<NodeId> ids;
  std::vector<ListCopy> lists;
  while (!queue.empty() && window.size() < window_) {
    ids.clear();
    for (; !queue.empty() && ids.size() < kBeam; queue.pop_back()) {
      std::pop_heap(queue.begin(), queue.end(), farther);
      ids.push_back(queue.back().id);
      placed_.set(queue.back().id);
    }
    lists.clear();
    reader_.read(ids, false, false, lists);
    ids.clear();
    for (ListCopy& copy : lists) {
      for (const NodeId to : copy.entry.list) {
        if (to >= rows_) continue;
        met_.set(to);
        if (!placed_.test(to) && queued_.set(to)) ids.push_back(to);
      }
      window.push_back(std::move(copy));
    }
    distances.resize(ids.size());
    q->distances(table.data(), ids.data(), ids.size(), distances.data(), scratch);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      queue.push_back({ids[i], distances[i]});
      std::push_heap(queue.begin(), queue.end(), farther);
    }
    if (queue.size() > 4 * window_) {  // the far ones are met again, or found by next_seed()
      const auto half = queue.begin() + static_cast<std::ptrdiff_t>(2 * window_);
      std::nth_element(queue.begin(), half, queue.end());
      for (auto far = half; far != queue.end(); ++far) queued_.clear(far->id);
      queue.erase(half, queue.end());
      std::make_heap(queue.begin(), queue.end(), farther);
    }
  }
  next_ = queue.empty() ? kNoNode : queue.front().id;
  for (const Neighbour& n : queue) queued_.clear(n.id);
}

// Packing weighs an edge by its place in the list.
void Compaction::sort_nearest(const Quantized& q, ListCopy& copy) const {
  std::vector<float> own(q.pq.dim()), other(q.pq.dim());
  q.pq.decode(q.code(copy.id), own.data());
  std::vector<Neighbour> order;
  for (const NodeId id : copy.entry.list) {
    q.pq.decode(q.code(id), other.data());
    order.push_back({id, kernels::l2(own.data(), other.data(), own.size())});
  }
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i) copy.entry.list[i] = order[i].id;
}

// Seeks the places of some live nodes that nobody met has an edge to, and gives them one there.
// False when there are none.
bool Compaction::attach() {
  std::vector<NodeId> lost;
  for (; attach_from_ < rows_ && lost.size() < kAttached; ++attach_from_) {
    const auto id = static_cast<NodeId>(attach_from_);
    if (!met_.test(id) && !placed_.test(id) && s_.is_live(id)) lost.push_back(id);
  }
  if (lost.empty()) return false;
  std::vector<float> working(s_.space.dim());
  std::vector<std::size_t> job(8);
  std::size_t next = 0;
  lane_->run(
      s_.session.in_flight,
      [&](Traversal& t) {
        if (next == lost.size()) return false;
        job[t.slot] = next++;
        const auto q = s_.quantized();
        q->pq.decode(q->code(lost[job[t.slot]]), working.data());
        t.begin(working.data(), 0, s_.options.insert_list / 2, {}, Traversal::Purpose::seek);
        return true;
      },
      [&](Traversal& t) { link(t, lost[job[t.slot]]); });
  for (const NodeId id : lost) met_.set(id);
  reader_.release();
  index_.maintain();
  return true;
}

// One of the nearest nodes met takes the lost one in: where there is room, or in place of a
// neighbour that the lost one has an edge to, so that nobody is lost for it.
void Compaction::link(Traversal& t, NodeId id) {
  const auto q = s_.quantized();
  std::vector<Neighbour> near;
  for (const Expanded& e : t.expanded()) {
    if (e.node.id != id && met_.test(e.node.id) && s_.is_live(e.node.id)) near.push_back(e.node);
  }
  std::sort(near.begin(), near.end());
  // All that the search came upon is out of reach as well: an island with an entrance of its own.
  if (near.empty()) near = nearest_met(*q, id);
  if (near.size() > kTried) near.resize(kTried);

  std::lock_guard lock(index_.commit_);
  ListCopy own{id, 0, {}}, host{kNoNode, 0, {}};
  auto& own_list = own.entry.list;
  auto& list = host.entry.list;
  if (!s_.is_live(id) || !index_.current_list(t, id, own_list, own.entry.vector)) return;
  auto has = [](const std::vector<NodeId>& where, NodeId what) {
    return std::find(where.begin(), where.end(), what) != where.end();
  };
  auto look_up = [&](NodeId node) {
    host = {node, 0, {}};
    return s_.is_live(node) && index_.current_list(t, node, list, host.entry.vector);
  };
  bool joined = false, owed = false;
  for (std::size_t i = 0; i < near.size() && !joined; ++i) {
    if (!look_up(near[i].id)) continue;
    if (has(list, id)) return;
    joined = list.size() < s_.options.degree;
    if (joined) list.push_back(id);
  }
  std::vector<float> working(q->pq.dim()), table(q->pq.subspaces() * 256);
  q->pq.decode(q->code(id), working.data());
  q->pq.table(working.data(), table.data());
  CodeRows rows;
  rows.begin(*q, table.data());
  for (std::size_t i = 0; i < near.size() && !joined; ++i) {
    if (!look_up(near[i].id)) continue;
    NodeId& out = list[index_.victim(rows, host.id, list)];
    owed = s_.is_live(out) && !has(own_list, out);
    joined = !owed || own_list.size() < s_.options.degree;
    if (!joined) continue;
    if (owed) own_list.push_back(out);
    out = id;
  }
  if (!joined) return;  // a later compaction tries again
  std::vector<ListCopy> changes{std::move(host)};
  if (owed) changes.push_back(std::move(own));
  index_.log_lists(std::move(changes));
}

std::vector<Neighbour> Compaction::nearest_met(const Quantized& q, NodeId id) const {
  std::vector<float> own(q.pq.dim()), other(q.pq.dim());
  q.pq.decode(q.code(id), own.data());
  std::vector<Neighbour> best;  // the farthest on top
  for (std::size_t to = met_.next(0); to < rows_; to = met_.next(to + 1)) {
    const auto node = static_cast<NodeId>(to);
    if (node == id || !s_.is_live(node)) continue;
    q.pq.decode(q.code(node), other.data());
    best.push_back({node, kernels::l2(own.data(), other.data(), own.size())});
    std::push_heap(best.begin(), best.end());
    if (best.size() <= kTried) continue;
    std::pop_heap(best.begin(), best.end());
    best.pop_back();
  }
  std::sort(best.begin(), best.end());
  return best;
}

// Packed layout: the lists of units with holes in them move together, in the order they have.
void Compaction::densify() {
  const std::size_t per_unit = s_.format.per_unit();
  if (!s_.packed() || per_unit < 2) return;
  std::vector<std::uint32_t> sparse;
  for (std::uint32_t u = 0; u < s_.units.size(); ++u) {
    if (s_.units.live(u) > 0 && s_.units.live(u) < per_unit) sparse.push_back(u);
  }
  if (sparse.size() > 1) rewrite_units(sparse);
}

// What is left at the end of the file goes to the holes before it.
void Compaction::fold_tail() {
  for (int round = 0;; ++round) {
    index_.checkpoint();
    wait_for_readers();
    shrink();
    std::vector<std::uint32_t> tail;
    for (auto u = static_cast<std::uint32_t>(s_.units.used()); u < s_.units.size(); ++u) {
      if (s_.units.live(u) > 0) tail.push_back(u);
    }
    if (tail.empty() || round == kRounds) return;
    rewrite_units(tail);
  }
}

// Rewrites all lists of these units, whole windows at a time, in the order they are in.
std::size_t Compaction::rewrite_units(const std::vector<std::uint32_t>& units) {
  std::vector<ListCopy> window;
  const std::size_t many = std::max<std::size_t>(1, window_ / s_.format.per_unit());
  std::size_t moved = 0;
  for (std::size_t first = 0; first < units.size(); first += many) {
    window.clear();
    reader_.read_units(std::span(units).subspan(first, std::min(many, units.size() - first)), true,
                       window);
    index_.place_lists(*lane_, window, given_order(window.size()), true, false);
    reader_.release();
    moved += window.size();
    if (s_.units.awaiting_checkpoint() * 4 > s_.units.used() + 256) index_.checkpoint();
    report(2, moved);
  }
  return moved;
}

// Gives the free end of both files back. Nobody writes there: new units and slots are asked for
// under the flush lock only, but for those of this thread.
void Compaction::shrink() {
  std::lock_guard flush(index_.flush_);
  s_.pages.resize(s_.units.shrink() * s_.format.unit_bytes());
  if (s_.packed()) return;
  const std::size_t per_page = s_.vectors_per_page();
  const std::size_t pages = (s_.slots.shrink() + per_page - 1) / per_page;
  s_.vectors.resize(pages * s_.vector_read_bytes());
}

}  // namespace navis
