// Looking into an index: verification, statistics, lists, the path of a search.
#include <algorithm>

#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

std::vector<std::vector<std::uint64_t>> Index::trace(const float* queries, std::size_t n,
                                                     std::size_t list, bool seek) {
  require_open(false);
  Store& s = *store_;
  std::vector<std::vector<std::uint64_t>> paths(n);
  auto lease = lane();
  std::vector<float> working(s.space.dim());
  std::size_t next = 0;
  lease->run(
      1,
      [&](Traversal& t) {
        if (next == n) return false;
        s.space.query(queries + next * s.options.dim, working.data());
        t.begin(working.data(), 10, list, Rerank{},
                seek ? Traversal::Purpose::seek : Traversal::Purpose::search);
        return true;
      },
      [&](Traversal& t) {
        for (const Expanded& e : t.expanded()) paths[next].push_back(s.external[e.node.id]);
        ++next;
      });
  return paths;
}

std::vector<std::vector<std::uint64_t>> Index::neighbours(const std::uint64_t* ids, std::size_t n) {
  require_open(false);
  Store& s = *store_;
  std::vector<std::vector<std::uint64_t>> lists(n);
  shorthaul::uring::Buffer buffer(s.format.unit_bytes());
  const auto guard = s.epochs.enter_guard();
  for (std::size_t i = 0; i < n; ++i) {
    NodeId node;
    {
      std::lock_guard lock(commit_);
      node = id_map_.find(ids[i]);
    }
    if (node == kNoNode) {
      throw Error(ErrorKind::bad_input, "id " + std::to_string(ids[i]) + " is not in the index");
    }
    std::vector<NodeId> list;
    for (;;) {
      const std::uint32_t at = s.location[node].load(std::memory_order_acquire);
      if (at == kPendingLoc) {
        if (s.lists.find(node, [&](const PendingEntry& e) { list = e.list; })) break;
        continue;
      }
      const std::uint32_t unit = s.unit_of(at);
      s.pages.read_at(s.unit_offset(unit), buffer.span(0, s.format.unit_bytes()));
      s.check_unit(unit, buffer.data());
      const auto read = PageView(s.format, buffer.data()).list(s.slot_of(at));
      list.assign(read.begin(), read.end());
      break;
    }
    for (const NodeId to : list) lists[i].push_back(s.external[to]);
  }
  return lists;
}

VerifyReport Index::verify() {
  require_open(false);
  Store& s = *store_;
  VerifyReport report;
  auto fault = [&](std::string text) {
    if (report.faults.size() < 100) report.faults.push_back(std::move(text));
  };
  const auto guard = s.epochs.enter_guard();
  const NodeId rows = s.rows;
  const std::size_t unit_bytes = s.format.unit_bytes();
  shorthaul::uring::Buffer buffer(unit_bytes);
  std::uint32_t loaded = kNoLoc;
  std::string loaded_fault;
  // By place, so that every unit is read once.
  std::vector<std::pair<std::uint32_t, NodeId>> order;
  for (NodeId id = 0; id < rows; ++id) {
    if (s.state[id] != NodeState::free) order.emplace_back(s.location[id].load(), id);
  }
  std::sort(order.begin(), order.end());
  std::vector<NodeId> list;
  std::vector<std::byte> raw(s.space.raw_bytes());
  for (const auto& [ignored, id] : order) {
    const std::string name = "id " + std::to_string(s.external[id]);
    std::uint32_t at = s.location[id].load(std::memory_order_acquire);
    if (at == kNoLoc) {
      fault(name + ": no edge list");
      continue;
    }
    bool have =
        at == kPendingLoc && s.lists.find(id, [&](const PendingEntry& e) { list = e.list; });
    if (!have) {
      at = s.location[id].load(std::memory_order_acquire);
      const std::uint32_t unit = s.unit_of(at);
      if (unit != loaded) {
        loaded = unit;
        ++report.units;
        try {
          s.pages.read_at(s.unit_offset(unit), buffer.span(0, unit_bytes));
          loaded_fault = PageView(s.format, buffer.data()).fault(unit);
        } catch (const std::exception& error) {
          loaded_fault = error.what();
        }
        if (!loaded_fault.empty()) {
          fault(s.pages.path().string() + ": page at byte " + std::to_string(s.unit_offset(unit)) +
                ": " + loaded_fault);
        }
      }
      if (!loaded_fault.empty()) continue;
      const PageView page(s.format, buffer.data());
      const std::size_t slot = s.slot_of(at);
      if (slot >= page.slots() || page.id(slot) != id) {
        fault(name + ": its list is not where the table says");
        continue;
      }
      const auto read = page.list(slot);
      list.assign(read.begin(), read.end());
    }
    ++report.lists;
    report.edges += list.size();
    if (list.size() > s.options.degree) fault(name + ": too many neighbours");
    std::sort(list.begin(), list.end());
    if (std::adjacent_find(list.begin(), list.end()) != list.end()) {
      fault(name + ": a neighbour twice");
    }
    for (const NodeId to : list) {
      if (to == id) fault(name + ": is its own neighbour");
      if (to >= s.rows || s.state[to] == NodeState::free)
        fault(name + ": a neighbour that is none");
    }
    try {
      s.read_vector(id, raw.data());
      ++report.vectors;
    } catch (const std::exception& error) {
      fault(error.what());
    }
  }
  for (const NodeId id : s.entrance.ids()) {
    if (!s.is_live(id)) fault("the entrance graph holds a deleted node");
  }
  return report;
}

Stats Index::stats() {
  require_open(false);
  Store& s = *store_;
  std::lock_guard lock(commit_);
  Stats stats;
  stats.rows = s.rows;
  stats.live = s.live;
  stats.deleted = stats.rows - stats.live;
  stats.units = s.units.size();
  stats.units_used = s.units.used();
  stats.per_unit = s.format.per_unit();
  stats.unit_bytes = s.format.unit_bytes();
  stats.units_minimal = (stats.rows + stats.per_unit - 1) / stats.per_unit;
  stats.pending_lists = s.lists.size();
  stats.pending_vectors = s.fresh.size();
  stats.entrance_nodes = s.entrance.size();
  stats.entrance_evictions = s.entrance.evictions();
  stats.table_bytes = s.table_bytes();
  stats.code_bytes = s.quantized()->codes.memory_bytes();
  stats.entrance_bytes = s.entrance.memory_bytes();
  stats.id_map_bytes = id_map_.memory_bytes();
  stats.pending_bytes =
      s.lists.size() * (160 + 4 * s.options.degree) + s.fresh.size() * (64 + s.space.raw_bytes());
  if (s.cache) {
    stats.cache_entries = s.cache->entries();
    stats.cache_capacity = s.cache->capacity();
    stats.cache_bytes = s.cache->memory_bytes();
    stats.cache = s.cache->counters();
  }
  {
    std::lock_guard lanes(lanes_mutex_);
    for (const auto& l : lanes_) {
      stats.lane_bytes += l->memory_bytes();
      stats.uring = l->ring().backend() == shorthaul::uring::Backend::uring;
      stats.io_reason = l->ring().reason();
    }
  }
  if (wal_) {
    stats.next_lsn = wal_->next_lsn();
    stats.durable_lsn = wal_->durable_lsn();
    stats.wal_bytes = wal_->bytes_on_disk();
    stats.wal = wal_->counters();
  }
  stats.replayed_records = replayed_;
  stats.dropped_wal_bytes = dropped_;
  // A checkpoint beside us renames and removes files; what has gone counts for nothing.
  std::error_code gone;
  for (auto file = std::filesystem::recursive_directory_iterator(s.folder, gone);
       !gone && file != std::filesystem::recursive_directory_iterator(); file.increment(gone)) {
    std::error_code error;
    const std::uint64_t bytes = file->is_regular_file(error) ? file->file_size(error) : 0;
    if (!error) stats.files_bytes += bytes;
  }
  return stats;
}

}  // namespace navis
