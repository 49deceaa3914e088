#include <algorithm>
#include <numeric>
#include <string>

#include "prune.hpp"
#include "vamana.hpp"

namespace navis {
namespace {

[[noreturn]] void refuse(const std::string& why) {
  throw Error(ErrorKind::bad_input, "merge of graphs: " + why);
}

}  // namespace

Graph merge_graphs(const std::vector<Graph>& graphs,
                   const std::vector<std::vector<NodeId>>& members, std::size_t n,
                   std::size_t degree, float alpha,
                   const std::function<float(NodeId, NodeId)>& distance) {
  if (graphs.size() != members.size()) refuse("as many lists of members as graphs are needed");
  if (degree == 0 || degree > 255) refuse("degree must be 1 to 255");
  std::vector<std::vector<NodeId>> lists(n);
  for (std::size_t s = 0; s < graphs.size(); ++s) {
    const std::vector<NodeId>& global = members[s];
    if (global.size() != graphs[s].size()) refuse("a graph and its members differ in size");
    for (NodeId id : global) {
      if (id >= n) refuse("a member is not below n");
    }
    for (std::size_t i = 0; i < global.size(); ++i) {
      for (NodeId near : graphs[s].of(i)) lists[global[i]].push_back(global[near]);
    }
  }
  Graph merged;
  merged.degree = degree;
  merged.counts.assign(n, 0);
  merged.rows.assign(n * degree, kNoNode);
  std::vector<Neighbour> candidates;
  for (std::size_t node = 0; node < n; ++node) {
    std::vector<NodeId>& list = lists[node];
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
    candidates.clear();
    for (NodeId near : list)
      candidates.push_back({near, distance(static_cast<NodeId>(node), near)});
    std::sort(candidates.begin(), candidates.end());
    std::vector<std::size_t> kept(candidates.size());
    std::iota(kept.begin(), kept.end(), std::size_t{0});
    if (kept.size() > degree) {
      kept = robust_prune(candidates, degree, alpha, false, [&](std::size_t a, std::size_t b) {
        return distance(candidates[a].id, candidates[b].id);
      });
    }
    for (std::size_t i : kept) {
      merged.rows[node * degree + merged.counts[node]++] = candidates[i].id;
    }
    std::vector<NodeId>().swap(list);
  }
  return merged;
}

}  // namespace navis
