// Opening, recovery and closing.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <unordered_set>

#include "bytes.hpp"
#include "closed_mark.hpp"
#include "index.hpp"
#include "index_detail.hpp"
#include "wal_format.hpp"

namespace navis {

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
                  folder.string() +
                      " is open for writing already, here or in another process: close it there, "
                      "or open it readonly");
    }
  }
  try {
    using shorthaul::uring::File;
    const auto mode = session.readonly ? File::Mode::read : File::Mode::write;
    s.pages = File::open(folder / (s.packed() ? "records.dat" : "edges.dat"), mode, session.direct);
    if (!s.packed()) s.vectors = File::open(folder / "vectors.dat", mode, session.direct);
    margin_ = s.options.margin;
    // Before the log is read: a writer may be at work while we only read.
    const std::uint64_t closed = read_closed_mark(lock_path);
    if (closed > 0 && wal::list_segments(folder / "wal").empty()) {
      throw Error(ErrorKind::corrupt,
                  (folder / "wal").string() + ": the log is gone, and with it the latest changes");
    }
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
    if (next_lsn_ < closed) {
      throw Error(ErrorKind::corrupt, (folder / "wal").string() + ": the log ends before record " +
                                          std::to_string(next_lsn_) + ", but had all before " +
                                          std::to_string(closed) +
                                          " when the index was closed: it has been cut off");
    }
    take_stock();
    if (!session.readonly) {
      WalOptions options;
      options.durability = session.durability;
      options.window_s = session.window_s;
      options.direct = session.direct;
      wal_ = std::make_unique<Wal>(folder / "wal", next_lsn_, options);
      if (closed == 0) write_closed_mark(lock_fd_, from);  // from here on there is a log
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
  if (closed_.exchange(true)) return;
  for (std::uint32_t users = users_; users != 0; users = users_) users_.wait(users);
  std::exception_ptr failure;
  try {
    if (wal_) {
      wal_->flush();
      write_closed_mark(lock_fd_, wal_->next_lsn());
    }
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

}  // namespace navis
