// What damage took is made again from what is left, as far as it can be.
#include <algorithm>

#include "bytes.hpp"
#include "index.hpp"
#include "index_detail.hpp"
#include "list_reader.hpp"

namespace navis {

namespace {

constexpr std::size_t kPiece = 512;  // lists read, or logged, at once

struct Lost {
  NodeId id;
  std::uint32_t location;
};

// Nodes whose list cannot be read from the file.
std::vector<Lost> lost_lists(Store& s, Lane& lane) {
  std::vector<Lost> order, lost;
  for (NodeId id = 0; id < s.rows.load(std::memory_order_acquire); ++id) {
    const std::uint32_t at = s.location[id].load(std::memory_order_acquire);
    if (s.state[id] != NodeState::free && at < kPendingLoc) order.push_back({id, at});
  }
  std::sort(order.begin(), order.end(),
            [](const Lost& a, const Lost& b) { return a.location < b.location; });
  ListReader reader(s, lane, false);
  std::vector<ListCopy> lists;
  std::vector<NodeId> ids, found;
  for (std::size_t first = 0; first < order.size(); first += kPiece) {
    const std::size_t last = std::min(order.size(), first + kPiece);
    ids.clear();
    lists.clear();
    found.clear();
    for (std::size_t i = first; i < last; ++i) ids.push_back(order[i].id);
    reader.read(ids, false, true, lists);
    reader.release();
    for (const ListCopy& copy : lists) found.push_back(copy.id);
    std::sort(found.begin(), found.end());
    for (std::size_t i = first; i < last; ++i) {
      if (!std::binary_search(found.begin(), found.end(), order[i].id)) lost.push_back(order[i]);
    }
  }
  return lost;
}

// The list of a node from what a search for its vector has come upon, by codes alone.
std::vector<NodeId> neighbours_for(const Store& s, const Traversal& t, NodeId node) {
  const Quantized& q = t.quantized();
  std::vector<Neighbour> sorted;
  for (const Expanded& e : t.expanded()) {
    if (e.node.id != node && s.is_live(e.node.id)) sorted.push_back(e.node);
  }
  std::sort(sorted.begin(), sorted.end());
  const std::size_t dim = q.pq.dim();
  std::vector<float> vectors(sorted.size() * dim);
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    q.pq.decode(q.code(sorted[i].id), vectors.data() + i * dim);
  }
  std::vector<NodeId> list;
  for (const std::size_t i : robust_prune(
           sorted, s.options.degree, s.options.alpha, false, [&](std::size_t a, std::size_t b) {
             return kernels::l2(vectors.data() + a * dim, vectors.data() + b * dim, dim);
           })) {
    list.push_back(sorted[i].id);
  }
  return list;
}

}  // namespace

// Selective layout: a lost list is the cache's, if it is there, or found anew by the vector.
// Packed: the vector is lost with it.
RepairReport Index::repair() {
  const Use use(*this, true);
  Store& s = *store_;
  RepairReport report;
  auto lease = lane();
  const std::vector<Lost> lost = lost_lists(s, *lease);
  std::vector<NodeId> empty;
  if (!s.packed()) {
    // Something readable in their places first, so that no search stumbles any more.
    std::vector<NodeId> list(s.options.degree);
    for (std::size_t first = 0; first < lost.size(); first += kPiece) {
      std::lock_guard lock(commit_);
      std::vector<ListCopy> changes;
      for (std::size_t i = first; i < std::min(lost.size(), first + kPiece); ++i) {
        const auto [id, location] = lost[i];
        if (s.location[id] != location) continue;  // changed meanwhile, so it is whole
        const int length = s.cache ? s.cache->peek(id, list.data()) : -1;
        changes.push_back({id, location, {}});
        changes.back().entry.list.assign(list.begin(), list.begin() + std::max(length, 0));
        if (length < 0 && s.is_live(id)) empty.push_back(id);
        ++report.lists;
      }
      log_lists(std::move(changes));
    }
  }
  std::vector<std::byte> raw(s.space.raw_bytes());
  std::vector<float> working(s.space.dim());
  auto vector_of = [&](NodeId id) {  // by its code if there is nothing better
    try {
      s.read_vector(id, raw.data());
      s.space.stored(raw.data(), working.data());
      return true;
    } catch (const Error&) {
      const auto q = s.quantized();
      q->pq.decode(q->code(id), working.data());
      return false;
    }
  };
  std::size_t next = 0;
  std::vector<NodeId> job(8);
  lease->run(
      s.session.in_flight,
      [&](Traversal& t) {
        if (next == empty.size()) return false;
        job[t.slot] = empty[next++];
        vector_of(job[t.slot]);
        // Without reading vectors, some of which may be damaged.
        t.begin(working.data(), 0, s.options.insert_list, {}, Traversal::Purpose::seek);
        return true;
      },
      [&](Traversal& t) {
        const NodeId id = job[t.slot];
        const std::vector<NodeId> found = neighbours_for(s, t, id);
        std::lock_guard lock(commit_);
        ListCopy change{id, 0, {}};
        auto& list = change.entry.list;
        if (!s.is_live(id) || !current_list(t, id, list, change.entry.vector)) return;
        // Others may have joined it meanwhile; the room that is left is filled.
        for (const NodeId to : found) {
          const bool known = std::find(list.begin(), list.end(), to) != list.end();
          if (s.is_live(to) && !known && list.size() < s.options.degree) list.push_back(to);
        }
        log_lists({change});
      });
  const auto guard = s.epochs.enter_guard();
  for (NodeId id = 0; id < s.rows.load(std::memory_order_acquire); ++id) {
    if (s.is_live(id) && !vector_of(id)) report.lost.push_back(s.external[id]);
  }
  checkpoint();
  return report;
}

}  // namespace navis
