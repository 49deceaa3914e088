// Whether everything is whole, and what to do where it is not.
#include <algorithm>

#include "bits.hpp"
#include "bytes.hpp"
#include "index.hpp"
#include "index_detail.hpp"
#include "list_reader.hpp"

namespace navis {

namespace {

constexpr std::size_t kPiece = 512;    // lists read at once
constexpr std::size_t kLocked = 4096;  // nodes looked up under one lock
constexpr std::size_t kFaults = 100;

// Nodes that hold a vector, in the order of their lists in the file.
std::vector<std::pair<std::uint32_t, NodeId>> by_location(const Store& s) {
  std::vector<std::pair<std::uint32_t, NodeId>> order;
  const NodeId rows = s.rows.load(std::memory_order_acquire);
  for (NodeId id = 0; id < rows; ++id) {
    if (s.state[id] != NodeState::free) order.emplace_back(s.location[id].load(), id);
  }
  std::sort(order.begin(), order.end());
  return order;
}

// Follows edges from where traversals start; lists come in the order of the file, so that it is
// gone through a few times and nothing but a bit or two per node is held.
class Reach {
 public:
  Reach(std::size_t rows, const std::vector<NodeId>& starts) : met_(rows), followed_(rows) {
    for (const NodeId id : starts) {
      if (id < rows) met_.set(id);
    }
  }
  bool wants(NodeId id) const { return met_.test(id) && !followed_.test(id); }
  bool met(NodeId id) const { return met_.test(id); }
  void follow(NodeId id, const std::vector<NodeId>& list) {
    followed_.set(id);
    for (const NodeId to : list) {
      if (to < met_.size()) met_.set(to);
    }
  }
  // A list that cannot be read leads nowhere.
  void pass(NodeId id) { followed_.set(id); }
  // Goes through the file until all that is met has been followed.
  void finish(const std::vector<std::pair<std::uint32_t, NodeId>>& order, ListReader& reader) {
    std::vector<ListCopy> lists;
    std::vector<NodeId> ids;
    for (bool more = true; more;) {
      more = false;
      for (std::size_t at = 0; at < order.size();) {
        ids.clear();
        for (; at < order.size() && ids.size() < kPiece; ++at) {
          if (wants(order[at].second)) ids.push_back(order[at].second);
        }
        lists.clear();
        reader.read(ids, false, true, lists);
        for (const ListCopy& copy : lists) follow(copy.id, copy.entry.list);
        for (const NodeId id : ids) pass(id);
        more = more || !ids.empty();
      }
    }
  }

 private:
  Bits met_, followed_;
};

}  // namespace

std::vector<NodeId> lost_entrances(const Entrance& entrance) {
  std::vector<NodeId> ids, lost;
  std::vector<std::vector<std::uint32_t>> edges;
  entrance.save(ids, edges);  // the start is the first
  std::vector<char> met(ids.size(), 0);
  std::vector<std::uint32_t> queue;
  if (!ids.empty()) queue.push_back(0);
  if (!ids.empty()) met[0] = 1;
  while (!queue.empty()) {
    const std::uint32_t at = queue.back();
    queue.pop_back();
    for (const std::uint32_t to : edges[at]) {
      if (!met[to]) queue.push_back(to);
      met[to] = 1;
    }
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!met[i]) lost.push_back(ids[i]);
  }
  return lost;
}

VerifyReport Index::verify() {
  const Use use(*this, false);
  Store& s = *store_;
  VerifyReport report;
  auto fault = [&](std::string text) {
    if (report.faults.size() < kFaults) report.faults.push_back(std::move(text));
  };
  const auto guard = s.epochs.enter_guard();
  const auto order = by_location(s);
  const NodeId rows = s.rows;
  std::vector<NodeId> starts;
  {
    std::lock_guard lock(commit_);
    starts = s.entrance.ids();
    for (const NodeId id : starts) {
      if (!s.is_live(id)) fault("the entrance graph holds a deleted node");
    }
    report.entrance_unreachable = lost_entrances(s.entrance).size();
    const NodeId medoid = s.medoid;
    if (medoid == kNoNode ? s.live > 0 : s.state[medoid] == NodeState::free) {
      fault("searches start at a node that is none");
    }
    starts.push_back(medoid);
    if (id_map_.size() != s.live) fault("the map of ids and the table differ in size");
  }
  for (NodeId first = 0; first < rows; first += kLocked) {
    std::lock_guard lock(commit_);
    for (NodeId id = first; id < std::min<std::size_t>(rows, first + kLocked); ++id) {
      if (s.is_live(id) && id_map_.find(s.external[id]) != id) {
        fault("id " + std::to_string(s.external[id]) + ": the map of ids leads elsewhere");
      }
    }
  }

  Reach reach(rows, starts);
  const std::size_t unit_bytes = s.format.unit_bytes();
  shorthaul::uring::Buffer buffer(unit_bytes);
  std::uint32_t loaded = kNoLoc;
  std::string loaded_fault;
  std::vector<NodeId> list;
  std::vector<std::byte> raw(s.space.raw_bytes());
  for (const auto& [ignored, id] : order) {
    const std::string name = "id " + std::to_string(s.external[id]);
    std::uint32_t at;
    bool have = false;
    do {
      at = s.location[id].load(std::memory_order_acquire);
      if (at != kPendingLoc) break;
      have = s.lists.find(id, [&](const PendingEntry& e) { list = e.list; });
    } while (!have);
    if (at == kNoLoc) {
      fault(name + ": no edge list");
      reach.pass(id);
      continue;
    }
    if (!have) {
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
      const PageView page(s.format, buffer.data());
      const std::size_t slot = s.slot_of(at);
      const bool there = loaded_fault.empty() && slot < page.slots() && page.id(slot) == id;
      if (loaded_fault.empty() && !there) fault(name + ": its list is not where the table says");
      if (!there) {
        reach.pass(id);
        continue;
      }
      const auto read = page.list(slot);
      list.assign(read.begin(), read.end());
    }
    ++report.lists;
    report.edges += list.size();
    if (reach.wants(id)) reach.follow(id, list);
    if (list.size() > s.options.degree) fault(name + ": too many neighbours");
    std::sort(list.begin(), list.end());
    if (std::adjacent_find(list.begin(), list.end()) != list.end()) {
      fault(name + ": a neighbour twice");
    }
    for (const NodeId to : list) {
      if (to == id) fault(name + ": is its own neighbour");
      if (to >= s.rows || s.state[to] == NodeState::free) {
        fault(name + ": a neighbour that is none");
      } else if (!s.is_live(to)) {
        ++report.dead_edges;
      }
    }
    if (!s.is_live(id)) continue;  // nobody will ask for its vector
    try {
      s.read_vector(id, raw.data());
      ++report.vectors;
    } catch (const std::exception& error) {
      fault(error.what());
    }
  }
  auto lease = lane();
  ListReader reader(s, *lease);
  reach.finish(order, reader);
  for (const auto& [ignored, id] : order) {
    if (s.is_live(id) && !reach.met(id)) ++report.unreachable;
  }
  return report;
}

}  // namespace navis
