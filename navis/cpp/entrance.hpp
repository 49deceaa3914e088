// The entrance graph: a small graph in memory over a share of the nodes, where traversals begin.
// It grows with the inserts from what their position seeking has found anyway (NAVIS, dynamic
// entrance graph): maintaining it reads nothing. Readers take no lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "chunked.hpp"
#include "epoch.hpp"
#include "prune.hpp"
#include "quantized.hpp"

namespace navis {

class Entrance {
 public:
  static constexpr std::size_t kDegree = 32;

  explicit Entrance(Epochs& epochs) : epochs_(epochs) {}
  ~Entrance();

  // The `list` nearest entrance nodes by PQ distance, ascending, and with them all that the search
  // has looked at. The caller holds an epoch guard.
  struct Found {
    std::uint32_t slot;
    Neighbour node;
    bool expanded = false;
  };
  void search(const Quantized& quantized, const float* table, std::size_t list,
              std::vector<Found>& found) const;

  // Calls use(id) for entrance nodes, evenly chosen, of about `most` places. Any thread may.
  template <class Use>
  void each(std::size_t most, Use&& use) const {
    const std::size_t rows = rows_.load(std::memory_order_acquire), step = rows / most + 1;
    for (std::size_t s = 0; s < rows; s += step) {
      const NodeId id = table_[s].id.load(std::memory_order_acquire);
      if (id != kNoNode) use(id);
    }
  }

  // The following are the writer's, one at a time.

  // Makes the graph anew over these nodes.
  void build(const Quantized& quantized, const std::vector<NodeId>& ids, std::uint64_t seed);
  // Puts back what save() gave.
  void load(const Quantized& quantized, const std::vector<NodeId>& ids,
            const std::vector<std::vector<std::uint32_t>>& edges);
  void save(std::vector<NodeId>& ids, std::vector<std::vector<std::uint32_t>>& edges) const;
  // Adds a node whose neighbours are chosen among entrance nodes already met: `explored` by the
  // search here, `expanded` on disk. At the bound the node met least often leaves. True if added.
  bool promote(const Quantized& quantized, NodeId id, const std::vector<Found>& explored,
               const std::vector<Neighbour>& expanded, std::size_t bound);
  // Takes a node out, joining its neighbours.
  void erase(const Quantized& quantized, NodeId id);
  // Whether a point this far from its nearest entrance node lies where there are few.
  bool uncovered(float nearest) const { return nearest > spacing_.load(std::memory_order_relaxed); }

  bool contains(NodeId id) const { return slots_.contains(id); }
  std::vector<NodeId> ids() const;
  std::size_t size() const { return size_.load(std::memory_order_relaxed); }
  std::size_t memory_bytes() const;
  std::uint64_t evictions() const { return evictions_; }

 private:
  struct Edges {
    std::uint32_t count;
    std::uint32_t slots[kDegree];
  };
  struct Slot {
    std::atomic<NodeId> id{kNoNode};
    std::atomic<const Edges*> edges{nullptr};
    std::atomic<std::uint32_t> hits{0};
  };

  std::uint32_t take_slot();
  void publish(std::uint32_t slot, const std::vector<std::uint32_t>& list);
  void reclaim();
  void link_back(const Quantized& quantized, std::uint32_t from, std::uint32_t to);
  std::vector<std::uint32_t> list_of(std::uint32_t slot) const;
  std::vector<std::uint32_t> choose(const Quantized& quantized, NodeId id,
                                    std::vector<std::uint32_t> candidates) const;
  void measure_spacing(const Quantized& quantized);

  Epochs& epochs_;
  ChunkedRows<Slot> table_;
  std::atomic<std::uint32_t> rows_{0};  // slots ever used
  std::atomic<std::uint32_t> start_{kNoNode};
  std::atomic<std::size_t> size_{0};
  std::atomic<float> spacing_{0};  // median squared distance of a node to its nearest neighbour
  std::uint64_t evictions_ = 0;
  std::unordered_map<NodeId, std::uint32_t> slots_;
  std::vector<std::uint32_t> empty_;
  std::vector<std::pair<std::uint64_t, const Edges*>> retired_;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> leaving_;
};

}  // namespace navis
