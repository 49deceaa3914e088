// Compaction. Internal: index_compact.cpp drops what is deleted, index_rewrite.cpp puts the rest in
// order.
#pragma once

#include <unordered_map>
#include <vector>

#include "bits.hpp"
#include "index.hpp"
#include "index_detail.hpp"
#include "list_reader.hpp"

namespace navis {

// What changes the graph (edges dropped and added, nodes freed) is logged, in the order it happens;
// what only moves lists and vectors is not, and counts from the next checkpoint. So the log always
// leads to the same graph, and killing the process loses work but nothing else. Locks are held for
// short pieces, none of them and no epoch while `progress` runs.
class Compaction {
 public:
  Compaction(Index& index, const Progress& progress, std::size_t window);
  void run();

 private:
  using Heirs = std::unordered_map<NodeId, std::vector<NodeId>>;

  // index_compact.cpp
  void collect_dead();
  void clean();
  void heal(std::vector<ListCopy>& lists);
  std::vector<NodeId> mend(const Quantized& q, const ListCopy& copy, const Heirs& heirs) const;
  void commit(std::span<const ListCopy* const> copies,
              const std::vector<std::vector<NodeId>>& lists);
  bool current(const ListCopy& copy) const;
  void free_dead();
  void choose_medoid();
  void forget_lost_entrances();
  void wait_for_readers();
  void report(std::size_t phase, std::size_t done);

  // index_rewrite.cpp
  void move_vectors();
  void walk();
  NodeId next_seed();
  void gather(NodeId seed, std::vector<ListCopy>& window);
  void sort_nearest(const Quantized& q, ListCopy& copy) const;
  bool attach();
  void link(Traversal& t, NodeId id);
  std::vector<Neighbour> nearest_met(const Quantized& q, NodeId id) const;
  void densify();
  void fold_tail();
  void shrink();
  std::size_t rewrite_units(const std::vector<std::uint32_t>& units);

  Index& index_;
  Store& s_;
  const Progress& progress_;
  Index::LaneLease lane_;
  ListReader reader_;
  std::size_t window_;  // lists
  NodeId rows_ = 0;     // nodes there were when it began; younger ones need nothing
  Bits dead_;           // deleted before it began
  Bits seen_;           // their lists name none of those
  Bits met_, placed_;   // by the walk: somebody has an edge to it; its list has been read
  Bits queued_;         // in the walk's queue
  std::size_t seed_from_ = 0, attach_from_ = 0, reported_ = 0;
  NodeId next_ = kNoNode;
};

}  // namespace navis
