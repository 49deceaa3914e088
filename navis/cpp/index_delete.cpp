// Delete: at once invisible, then the graph around it is mended in place (after IP-DiskANN); the
// space comes back with compaction.
#include <algorithm>

#include "bytes.hpp"
#include "code_rows.hpp"
#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

namespace {

struct Change {
  NodeId id;
  std::vector<NodeId> list;
  std::vector<std::byte> vector;
};

// Positions of `nodes` by PQ distance to `id`, itself left out.
std::vector<std::size_t> nearest_to(const Quantized& q, NodeId id,
                                    const std::vector<NodeId>& nodes) {
  std::vector<float> own(q.pq.dim()), other(q.pq.dim());
  q.pq.decode(q.code(id), own.data());
  std::vector<std::pair<float, std::size_t>> order;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i] == id) continue;
    q.pq.decode(q.code(nodes[i]), other.data());
    order.emplace_back(kernels::l2(own.data(), other.data(), own.size()), i);
  }
  std::sort(order.begin(), order.end());
  std::vector<std::size_t> positions;
  for (const auto& [distance, i] : order) positions.push_back(i);
  return positions;
}

}  // namespace

std::size_t Index::remove(const std::uint64_t* ids, std::size_t n) {
  const Use use(*this, true);
  Store& s = *store_;
  std::vector<NodeId> gone;
  for (std::size_t i = 0; i < n; ++i) {
    std::lock_guard lock(commit_);
    const auto quantized = s.quantized();  // under the lock: retrain() replaces it
    const NodeId node = id_map_.find(ids[i]);
    if (node == kNoNode) continue;
    ByteWriter record;
    record.put(node);
    record.put(ids[i]);
    wal_->append(static_cast<std::uint32_t>(RecordType::remove), record.bytes());
    id_map_.erase(ids[i]);
    s.state[node].store(NodeState::deleted, std::memory_order_release);
    s.attributes.clear(node);
    s.live.fetch_sub(1, std::memory_order_relaxed);
    s.entrance.erase(*quantized, node);
    s.counters.deletes.fetch_add(1, std::memory_order_relaxed);
    gone.push_back(node);
  }
  wal_->commit(wal_->next_lsn() - 1);
  try {
    patch_around(gone);
  } catch (const Error& error) {
    // They are deleted all the same; what lies around a damaged page is for repair to say.
    if (error.kind() != ErrorKind::corrupt) throw;
  }
  return gone.size();
}

// Finds nodes that point to a deleted one by seeking its position, and lets them point to its
// nearest neighbours instead. Those not found keep a dead edge, which costs a hop, not a result.
void Index::patch_around(const std::vector<NodeId>& gone) {
  Store& s = *store_;
  std::atomic<std::size_t> next{0};
  constexpr std::size_t kHeirs = 3;
  auto lease = lane();
  std::vector<float> working(s.space.dim()), table;
  CodeRows rows;
  std::vector<std::size_t> job(8);
  lease->run(
      s.session.in_flight,
      [&](Traversal& t) {
        const std::size_t i = next.fetch_add(1);
        if (i >= gone.size()) return false;
        job[t.slot] = i;
        // By its code: the neighbourhood is found as well, and nothing is read for it.
        {
          // Under the lock: a compaction may have freed it, and its successor be on its way.
          std::lock_guard lock(commit_);
          const auto quantized = s.quantized();
          quantized->pq.decode(quantized->code(gone[i]), working.data());
        }
        t.begin(working.data(), 0, s.options.insert_list / 2, {}, Traversal::Purpose::seek);
        return true;
      },
      [&](Traversal& t) {
        const NodeId dead = gone[job[t.slot]];
        std::vector<NodeId> heirs;  // its live neighbours, who lose a way in
        std::vector<Change> changes;
        std::lock_guard lock(commit_);
        if (s.state[dead] != NodeState::deleted) return;  // freed, and may be somebody else's
        const auto quantized = s.quantized();
        const Quantized& q = *quantized;
        for (const Expanded& e : t.expanded()) {
          if (e.node.id != dead) continue;
          for (const NodeId id : t.list(e)) {
            if (s.is_live(id)) heirs.push_back(id);
          }
        }
        // With no live heir the dead node is all that joins its neighbours: it stays in their
        // lists.
        if (heirs.empty()) return;
        if (s.medoid == dead) s.medoid = heirs.front();
        std::vector<char> reached(heirs.size(), 0);
        for (const Expanded& e : t.expanded()) {
          const auto seen = t.list(e);
          if (!s.is_live(e.node.id) || std::find(seen.begin(), seen.end(), dead) == seen.end()) {
            continue;
          }
          Change change{e.node.id, {}, {}};
          if (!current_list(t, change.id, change.list, change.vector)) continue;
          if (std::erase(change.list, dead) == 0) continue;
          std::size_t taken = 0;
          for (const std::size_t h : nearest_to(q, change.id, heirs)) {
            const bool known =
                std::find(change.list.begin(), change.list.end(), heirs[h]) != change.list.end();
            if (!known && change.list.size() >= s.options.degree) break;
            if (!known) change.list.push_back(heirs[h]);
            reached[h] = 1;
            if (++taken == kHeirs) break;
          }
          changes.push_back(std::move(change));
        }
        // An heir nobody took over is pointed to by the nearest node this search could reach.
        std::vector<NodeId> reachable;
        for (const Expanded& e : t.expanded()) {
          if (s.is_live(e.node.id)) reachable.push_back(e.node.id);
        }
        for (std::size_t h = 0; h < heirs.size(); ++h) {
          if (reached[h]) continue;
          for (const std::size_t near : nearest_to(q, heirs[h], reachable)) {
            auto change = std::find_if(changes.begin(), changes.end(),
                                       [&](const Change& c) { return c.id == reachable[near]; });
            if (change == changes.end()) {
              Change fresh{reachable[near], {}, {}};
              if (!current_list(t, fresh.id, fresh.list, fresh.vector)) continue;
              change = changes.insert(changes.end(), std::move(fresh));
            }
            if (std::find(change->list.begin(), change->list.end(), heirs[h]) !=
                change->list.end()) {
              break;
            }
            if (change->list.size() < s.options.degree) {
              change->list.push_back(heirs[h]);
            } else {
              q.pq.decode(q.code(heirs[h]), working.data());
              table.resize(q.pq.subspaces() * 256);
              q.pq.table(working.data(), table.data());
              rows.begin(q, table.data());
              change->list[victim(rows, change->id, change->list)] = heirs[h];
            }
            break;
          }
        }
        if (changes.empty()) return;
        ByteWriter record;
        record.put(static_cast<std::uint32_t>(changes.size()));
        for (const Change& c : changes) record.put_list(c.id, c.list);
        const std::uint64_t lsn =
            wal_->append(static_cast<std::uint32_t>(RecordType::patch), record.bytes());
        for (Change& c : changes) change_list(c.id, std::move(c.list), std::move(c.vector), lsn);
      });
  maintain();
}

}  // namespace navis
