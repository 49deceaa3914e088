// Opening, recovery, closing; search; statistics and verification.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <unordered_set>

#include "bytes.hpp"
#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

namespace {

std::string megabytes(std::uint64_t bytes) {
  return std::to_string((bytes + (1U << 20U) - 1) >> 20U) + " MiB";
}

}  // namespace

Index::Index(const std::filesystem::path& folder, const OpenOptions& session)
    : store_(std::make_unique<Store>(folder, read_options(folder), session)),
      id_map_(store_->external) {
  Store& s = *store_;
  const auto lock_path = folder / "LOCK";
  if (!session.readonly) {
    lock_fd_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (lock_fd_ < 0) {
      throw Error(ErrorKind::bad_input, folder.string() + ": cannot be written (" +
                                            std::strerror(errno) + "); open it readonly");
    }
    if (::flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
      ::close(lock_fd_);
      lock_fd_ = -1;
      throw Error(ErrorKind::bad_input,
                  folder.string() + " is open for writing in another process; open it readonly");
    }
  }
  try {
    using shorthaul::uring::File;
    const auto mode = session.readonly ? File::Mode::read : File::Mode::write;
    s.pages = File::open(folder / (s.packed() ? "records.dat" : "edges.dat"), mode, session.direct);
    if (!s.packed()) s.vectors = File::open(folder / "vectors.dat", mode, session.direct);
    margin_ = s.options.margin;
    const std::uint64_t from = load_state();
    // Units by what the tables name; the log then moves lists out of them. The state file names
    // no unit that was not durable before it: one behind the file's end has been cut off, and who
    // reads it says so.
    std::vector<std::uint32_t> counts(s.pages.size() / s.format.unit_bytes(), 0);
    for (NodeId id = 0; id < s.rows; ++id) {
      const std::uint32_t at = s.location[id];
      if (at == kNoLoc) continue;
      if (s.unit_of(at) >= counts.size()) counts.resize(s.unit_of(at) + 1, 0);
      ++counts[s.unit_of(at)];
    }
    s.units.load(counts);
    plan_memory();
    replay(from);
    take_stock();
    if (!session.readonly) {
      WalOptions options;
      options.durability = session.durability;
      options.window_s = session.window_s;
      options.direct = session.direct;
      wal_ = std::make_unique<Wal>(folder / "wal", next_lsn_, options);
    }
  } catch (const std::system_error& error) {
    if (lock_fd_ >= 0) ::close(lock_fd_);
    throw Error(ErrorKind::corrupt, error.what());
  } catch (...) {
    if (lock_fd_ >= 0) ::close(lock_fd_);
    throw;
  }
}

Index::~Index() {
  try {
    close();
  } catch (...) {  // close() reports to those who call it
  }
}

// What was acknowledged is in the log; closing makes it durable and gives the lock back.
void Index::close() {
  if (closed_) return;
  closed_ = true;
  std::exception_ptr failure;
  try {
    if (wal_) wal_->flush();
  } catch (...) {
    failure = std::current_exception();
  }
  wal_.reset();
  lanes_.clear();
  if (lock_fd_ >= 0) ::close(lock_fd_);
  lock_fd_ = -1;
  if (failure) std::rethrow_exception(failure);
}

void Index::require_open(bool writing) const {
  if (closed_) throw Error(ErrorKind::closed, "the index is closed");
  if (writing && store_->session.readonly) {
    throw Error(ErrorKind::bad_input,
                store_->folder.string() + " was opened readonly: open it for writing");
  }
}

Index::LaneLease Index::lane() {
  {
    std::lock_guard lock(lanes_mutex_);
    if (!lanes_.empty()) {
      auto taken = std::move(lanes_.back());
      lanes_.pop_back();
      return {*this, std::move(taken)};
    }
  }
  return {*this, std::make_unique<Lane>(*store_)};
}

// After the log has been replayed: who is there, and what is free.
void Index::take_stock() {
  Store& s = *store_;
  const auto file = s.folder / "state.nav";
  while (s.rows > 0 && s.state[s.rows - 1] == NodeState::free) s.rows = s.rows - 1;
  const NodeId rows = s.rows;
  std::uint32_t live = 0;
  free_nodes_ = Bits(rows);
  std::size_t slots = 0;
  auto lacks = [&](NodeId id, const char* what) {
    throw Error(ErrorKind::corrupt,
                file.string() + ": id " + std::to_string(s.external[id]) + " has no " + what);
  };
  for (NodeId id = 0; id < rows; ++id) {
    if (s.state[id] == NodeState::free) {
      free_nodes_.set(id);
      continue;
    }
    if (!s.packed() && s.vector_slot[id] != kNoSlot) {
      slots = std::max<std::size_t>(slots, std::size_t{s.vector_slot[id]} + 1);
    }
    if (!s.is_live(id)) continue;
    ++live;
    if (s.location[id] == kNoLoc) lacks(id, "edge list");
    bool has = true;
    if (s.packed()) {
      s.lists.find(id, [&](const PendingEntry& e) { has = !e.vector.empty(); });
    } else if (s.vector_slot[id] == kNoSlot) {
      has = s.fresh.find(id, [](const auto&) {});
    }
    if (!has) lacks(id, "vector");
    id_map_.insert(id);
  }
  s.live = live;
  s.unused = static_cast<std::uint32_t>(free_nodes_.count());
  if (s.packed()) return;
  s.slots.load(slots, [&](auto&& used) {
    for (NodeId id = 0; id < rows; ++id) {
      if (s.state[id] != NodeState::free && s.vector_slot[id] != kNoSlot) used(s.vector_slot[id]);
    }
  });
}

// Divides the memory budget: tables, codes and entrance graph are needed, the cache has the rest.
void Index::plan_memory() {
  Store& s = *store_;
  const std::size_t entry_bytes =
      160 + 4 * s.options.degree + (s.packed() ? s.space.raw_bytes() : 0);
  const std::uint64_t codes = s.quantized()->codes.memory_bytes();
  const std::uint64_t fixed = s.table_bytes() + s.attributes.memory_bytes() + codes +
                              s.entrance.memory_bytes() + std::uint64_t{s.rows} * 8;
  // Two threads' traversals, each holding the pages of a position seeking.
  const std::uint64_t lanes = std::uint64_t{2} * s.session.in_flight * (s.options.insert_list + 8) *
                                  s.format.unit_bytes() / 2 +
                              (std::uint64_t{2} << 20U);
  const std::uint64_t budget = s.session.memory_budget;
  std::uint64_t pending = s.session.pending_bytes;
  if (pending == 0) {
    pending =
        budget ? std::clamp<std::uint64_t>(budget / 16, 64 * entry_bytes, 8U << 20U) : 2U << 20U;
  }
  pending_limit_ = std::max<std::size_t>(64, pending / entry_bytes);
  const std::uint64_t needed = fixed + lanes + 2 * pending;
  if (budget && budget < needed) {
    throw Error(ErrorKind::bad_input,
                "a memory budget of " + megabytes(budget) + " is too small for this index: give " +
                    megabytes(needed) + " (tables and codes " + megabytes(fixed) + ", buffers " +
                    megabytes(lanes + 2 * pending) + ") or more");
  }
  checkpoint_bytes_ = s.session.checkpoint_bytes
                          ? s.session.checkpoint_bytes
                          : std::max<std::uint64_t>(64U << 20U, state_bytes_ / 2);
  if (!s.packed() && s.session.cache != CachePolicy::none) {
    const std::uint64_t all = (std::uint64_t{s.rows} * 5 / 4 + 65536) * (4 * s.options.degree + 24);
    const std::uint64_t rest = budget ? std::min(budget - needed, all) : all;
    s.cache = std::make_unique<EdgeCache>(rest, s.options.degree, s.session.cache, 1);
  }
}

// Fills the cache before the first search: with every list if all fit, in one sweep of the file,
// and otherwise with the entrance nodes', which never leave.
void Index::warm() {
  std::call_once(warmed_, [this] {
    Store& s = *store_;
    if (!s.cache || s.rows == 0) return;
    const auto guard = s.epochs.enter_guard();
    const std::size_t unit_bytes = s.format.unit_bytes();
    std::vector<std::pair<std::uint32_t, NodeId>> wanted;  // location, node
    const bool all = s.cache->capacity() >= s.rows;
    const std::vector<NodeId> entrance = [&] {
      std::lock_guard lock(commit_);
      return s.entrance.ids();
    }();
    if (all) {
      for (NodeId id = 0; id < s.rows; ++id) wanted.emplace_back(s.location[id].load(), id);
    } else if (entrance.size() * 2 < s.cache->capacity()) {
      for (const NodeId id : entrance) wanted.emplace_back(s.location[id].load(), id);
    }
    std::erase_if(wanted, [](const auto& w) { return w.first >= kPendingLoc; });
    std::sort(wanted.begin(), wanted.end());
    auto lease = lane();
    constexpr std::size_t kBatch = 256;
    shorthaul::uring::Buffer buffer(kBatch * unit_bytes);
    for (std::size_t first = 0; first < wanted.size();) {
      std::vector<std::uint32_t> units;
      std::size_t last = first;
      for (; last < wanted.size(); ++last) {
        const std::uint32_t unit = s.unit_of(wanted[last].first);
        if (!units.empty() && units.back() == unit) continue;
        if (units.size() == kBatch) break;
        units.push_back(unit);
      }
      std::vector<ReadRequest> reads;  // neighbouring units as one request
      for (std::size_t u = 0; u < units.size(); ++u) {
        if (u > 0 && units[u] == units[u - 1] + 1) {
          reads.back().bytes += unit_bytes;
        } else {
          reads.push_back({&s.pages, s.unit_offset(units[u]), unit_bytes,
                           buffer.span(u * unit_bytes, unit_bytes).data()});
        }
      }
      lease->read(reads);
      std::size_t u = 0;
      for (; first < last; ++first) {
        const auto [at, id] = wanted[first];
        while (units[u] != s.unit_of(at)) ++u;
        const PageView page(s.format, buffer.data() + u * unit_bytes);
        // A damaged page is reported by whoever needs it.
        if (!page.fault(units[u]).empty() || page.id(s.slot_of(at)) != id) continue;
        const auto list = page.list(s.slot_of(at));
        const auto current = [&s, id = id, at = at] { return s.location[id].load() == at; };
        if (all) {
          s.cache->offer(id, list, current);
        } else {
          std::lock_guard lock(commit_);
          if (current()) s.cache->pin(id, list);
        }
      }
    }
  });
}

void Index::set_margin(float margin) {
  if (!(margin >= 0 && margin <= 1)) {
    throw Error(ErrorKind::bad_input, "margin " + std::to_string(margin) + ": use 0 to 1");
  }
  std::lock_guard lock(commit_);
  margin_ = margin;
  store_->options.margin = margin;
}

void Index::replay(std::uint64_t from_lsn) {
  const WalReplay result =
      replay_wal(store_->folder / "wal", from_lsn,
                 [&](std::uint64_t lsn, std::uint32_t type, std::span<const std::byte> payload) {
                   apply(lsn, type, payload);
                 });
  next_lsn_ = std::max(result.next_lsn, from_lsn);
  replayed_ = result.records;
  dropped_ = result.dropped_bytes;
}

// One record of the log; applying a record again changes nothing.
void Index::apply(std::uint64_t lsn, std::uint32_t type, std::span<const std::byte> payload) {
  Store& s = *store_;
  ByteReader record(payload);
  const auto quantized = s.quantized();
  std::vector<NodeId> list;
  auto refuse = [&](const char* what) {
    throw Error(ErrorKind::corrupt, (s.folder / "wal").string() + ": record " +
                                        std::to_string(lsn) +
                                        " does not follow from state.nav: " + what);
  };
  auto restore = [&](NodeId id) {
    if (id >= s.rows) refuse("it names an unknown node");
    std::vector<std::byte> vector;
    // The record's other half, from its page. Where there is none the state was collected after
    // the node had been freed; so a later record frees it, or take_stock() refuses it.
    if (s.packed() && s.location[id] != kPendingLoc && s.location[id] != kNoLoc) {
      vector.resize(s.space.raw_bytes());
      s.read_vector(id, vector.data());
    }
    change_list(id, list, std::move(vector), lsn);
  };
  if (type == static_cast<std::uint32_t>(RecordType::insert)) {
    const auto node = record.get<NodeId>();
    const auto id = record.get<std::uint64_t>();
    const auto replaced = record.get<NodeId>();
    const auto raw = record.take(s.space.raw_bytes());
    const auto code = record.take(quantized->pq.subspaces());
    if (node > s.rows) refuse("it skips a node");
    s.grow(node + 1);
    quantized->codes.grow(node + 1);
    if (node == s.rows) {
      s.rows = node + 1;
      s.location[node] = kNoLoc;
    }
    std::memcpy(quantized->codes.row(node), code.data(), code.size());
    s.external[node] = id;
    s.checksum[node] = crc32c(raw);
    s.state[node] = NodeState::live;
    std::vector<std::byte> vector(raw.begin(), raw.end());
    record.get_list(list);
    if (s.packed()) {
      change_list(node, list, std::move(vector), lsn);
    } else {
      // Its slot may be taken by another: whoever starts from this state again has it in the log.
      s.vector_slot[node] = kNoSlot;
      s.fresh.put(node, [&](std::vector<std::byte>& v) { v = std::move(vector); });
      restore(node);
    }
    if (replaced != kNoNode) {
      s.state[replaced] = NodeState::deleted;
      s.attributes.clear(replaced);
      s.entrance.erase(*quantized, replaced);
    }
    if (s.medoid == kNoNode) s.medoid = node;
    const auto changes = record.get<std::uint32_t>();
    for (std::uint32_t i = 0; i < changes; ++i) restore(record.get_list(list));
    if (!record.empty()) s.attributes.set_from(node, record);
  } else if (type == static_cast<std::uint32_t>(RecordType::remove)) {
    const auto node = record.get<NodeId>();
    if (node >= s.rows) refuse("it deletes an unknown node");
    s.state[node] = NodeState::deleted;
    s.attributes.clear(node);
    s.entrance.erase(*quantized, node);
  } else if (type == static_cast<std::uint32_t>(RecordType::patch)) {
    const auto changes = record.get<std::uint32_t>();
    for (std::uint32_t i = 0; i < changes; ++i) restore(record.get_list(list));
  } else if (type == static_cast<std::uint32_t>(RecordType::release)) {
    const auto medoid = record.get<NodeId>();
    const auto count = record.get<std::uint32_t>();
    std::vector<std::uint32_t> slots;  // take_stock() finds them free
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto node = record.get<NodeId>();
      if (node >= s.rows) refuse("it frees an unknown node");
      release_node(node, slots);
    }
    s.medoid = medoid;
  } else {
    throw Error(ErrorKind::environment, "the log holds a record of an unknown type; update navis");
  }
}

bool Index::contains(std::uint64_t id) {
  std::lock_guard lock(commit_);
  return id_map_.find(id) != kNoNode;
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
  require_open(false);
  Store& s = *store_;
  const std::size_t raw_bytes = s.space.raw_bytes();
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
    s.read_vector(node, raw + i * raw_bytes);
  }
}

}  // namespace navis
