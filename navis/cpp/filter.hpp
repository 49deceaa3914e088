// Filters: which vectors a search may give, and how it finds them.
#pragma once

#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "options.hpp"
#include "store.hpp"

namespace navis {

// A filter as one search meets it: matches a node or not, and knows about how many do.
//
// Where few match, the nearest of them by code are found by looking at every code (scan). Otherwise
// the graph is walked: matching nodes and others are kept apart, the others being walked through
// only. Whichever is estimated to cost less is chosen. The estimate knows how many match, not
// where: a walk that meets more others than expected before it has k is followed by a scan.
class FilterPlan {
 public:
  // `queries`: how many searches share the plan, and with it the cost of listing the nodes.
  FilterPlan(const Store& store, const Filter& filter, const SearchOptions& options,
             std::size_t queries);

  // Whether the node is live and matches; the caller holds an epoch guard. Attributes first: they
  // are cleared after a node has been marked as deleted.
  bool matches(NodeId node) const { return passes(node) && store_.is_live(node); }
  // The nodes that match, ascending, as of the first call; to be checked again when used.
  const std::vector<NodeId>& nodes() const;

  // About how many nodes match.
  std::size_t expected() const { return expected_; }
  // How many others a walk keeps: twice as many as lie around the k nearest that match, and half
  // as many as around the whole list, where matching ones are spread evenly.
  std::size_t others() const { return others_; }
  bool scans() const { return method_ == FilterMethod::scan; }
  // Whether a walk that has gone through all the others it keeps, nearer than its k, is given up
  // and a scan made instead. Not where that would cost many times as much.
  bool rescans() const { return rescans_; }

 private:
  bool passes(NodeId node) const;
  void estimate();
  void choose(const SearchOptions& options);
  bool listed(std::vector<NodeId>& out) const;

  const Store& store_;
  const Filter& filter_;
  FilterMethod method_;
  std::size_t queries_;
  std::size_t expected_ = 0, others_ = 0;
  bool rescans_ = false;
  mutable std::once_flag once_;
  mutable std::vector<NodeId> nodes_;
};

}  // namespace navis
