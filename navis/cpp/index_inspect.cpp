// Looking into an index: ids, vectors, statistics, lists, the path of a search.
#include <algorithm>

#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

bool Index::contains(std::uint64_t id) {
  std::lock_guard lock(commit_);
  return id_map_.find(id) != kNoNode;
}

std::size_t Index::live() const {
  require_open(false);
  return store_->live.load(std::memory_order_relaxed);
}

std::size_t Index::rows() const {
  require_open(false);
  return store_->rows.load(std::memory_order_relaxed);
}

NodeId Index::node_of(std::uint64_t id) {
  std::lock_guard lock(commit_);
  return node_of_locked(id);
}

NodeId Index::node_of_locked(std::uint64_t id) const {
  const NodeId node = id_map_.find(id);
  if (node == kNoNode) {
    throw Error(ErrorKind::bad_input, "id " + std::to_string(id) + " is not in the index");
  }
  return node;
}

std::vector<std::uint64_t> Index::ids() {
  std::lock_guard lock(commit_);
  std::vector<std::uint64_t> all;
  for (NodeId node = 0; node < store_->rows; ++node) {
    if (store_->is_live(node)) all.push_back(store_->external[node]);
  }
  return all;
}

void Index::get(const std::uint64_t* ids, std::size_t n, std::byte* raw) {
  const Use use(*this, false);
  Store& s = *store_;
  const std::size_t raw_bytes = s.space.raw_bytes();
  const auto guard = s.epochs.enter_guard();
  for (std::size_t i = 0; i < n; ++i) {
    s.read_vector(node_of(ids[i]), raw + i * raw_bytes);
  }
}

std::vector<std::vector<std::uint64_t>> Index::trace(const float* queries, std::size_t n,
                                                     std::size_t list, bool seek) {
  const Use use(*this, false);
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
  const Use use(*this, false);
  Store& s = *store_;
  std::vector<std::vector<std::uint64_t>> lists(n);
  shorthaul::uring::Buffer buffer(s.format.unit_bytes());
  const auto guard = s.epochs.enter_guard();
  for (std::size_t i = 0; i < n; ++i) {
    const NodeId node = node_of(ids[i]);
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

void Index::attributes(const std::uint64_t* ids, std::size_t n, std::vector<std::uint32_t>& labels,
                       std::vector<std::uint64_t>& counts, double* values) {
  const Use use(*this, false);
  const Attributes& attributes = store_->attributes;
  std::lock_guard lock(commit_);  // a replacement in between must not mix two vectors' attributes
  for (std::size_t i = 0; i < n; ++i) {
    const NodeId node = node_of_locked(ids[i]);
    const Attributes::Set set = attributes.labels(node);
    labels.insert(labels.end(), set.span().begin(), set.span().end());
    counts.push_back(set.span().size());
    values[i] = attributes.value(node);
  }
}

Stats Index::stats() {
  const Use use(*this, false);
  Store& s = *store_;
  std::lock_guard lock(commit_);
  Stats stats;
  stats.rows = s.rows;
  stats.live = s.live;
  stats.unused = s.unused;
  stats.budget_bytes = s.budget.taken();
  stats.budget_wait_s = s.budget.waited_s();
  stats.deleted = stats.rows - stats.live - stats.unused;
  stats.units = s.units.size();
  stats.units_used = s.units.used();
  stats.per_unit = s.format.per_unit();
  stats.unit_bytes = s.format.unit_bytes();
  stats.units_minimal = (s.held() + stats.per_unit - 1) / stats.per_unit;
  stats.pending_lists = s.lists.size();
  stats.pending_vectors = s.fresh.size();
  stats.entrance_nodes = s.entrance.size();
  stats.entrance_evictions = s.entrance.evictions();
  stats.table_bytes = s.table_bytes();
  stats.labels = s.attributes.by_label().labels();
  stats.attribute_bytes = s.attributes.memory_bytes();
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
