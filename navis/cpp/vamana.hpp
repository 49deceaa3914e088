// Builds a Vamana graph in memory, over float vectors and squared Euclidean distance. Inner
// product and cosine reach it as transformed vectors (see working_space.hpp), so it knows neither.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "types.hpp"

namespace navis {

struct BuildOptions {
  std::size_t degree = 64;        // R, at most 255
  std::size_t search_list = 100;  // L of the construction's searches
  float alpha = 1.1F;
  float slack = 1.3F;  // a list may grow to slack * degree before it is pruned back
  std::size_t threads = 1;
  std::uint64_t seed = 0;
};

// Out-neighbours of n nodes in rows of `degree`; row i uses counts[i] of them.
struct Graph {
  std::size_t degree = 0;
  std::vector<std::uint8_t> counts;
  std::vector<NodeId> rows;

  std::size_t size() const { return counts.size(); }
  std::span<const NodeId> of(std::size_t node) const {
    return {rows.data() + node * degree, counts[node]};
  }
};

// Called now and then with done and total; false stops the build, which then throws Error(closed).
using Progress = std::function<bool(std::size_t done, std::size_t total)>;

// The node nearest to the mean; kNoNode where there is none.
NodeId medoid(const float* vectors, std::size_t n, std::size_t dim);

// One pass of incremental insertion in a random order of the seed: greedy search from the medoid,
// robust prune, back edges with slack; at the end every list over `degree` is pruned, all are put
// nearest first, and nodes that cannot be reached from the medoid are attached. No self loops, no
// duplicates; with threads == 1 deterministic by seed. `progress` is called from the caller's
// thread. Error(bad_input) for options out of range and for a value that is not finite.
Graph build_vamana(const float* vectors, std::size_t n, std::size_t dim,
                   const BuildOptions& options, const Progress& progress = {});

// Makes every node reachable from `entry`: one that is not becomes a neighbour of the nearest node
// found that has room, else goes between the nearest one and a neighbour of it. Returns how many
// were attached.
std::size_t attach_unreachable(Graph& graph, NodeId entry, std::size_t search_list,
                               const std::function<float(NodeId, NodeId)>& distance);

// Greedy search over the graph with true distances, for tests and for merging: ids and squared
// distances of the `search_list` nearest found, ascending.
std::vector<struct Neighbour> greedy_search(const Graph& graph, const float* vectors,
                                            std::size_t dim, const float* query, NodeId entry,
                                            std::size_t search_list);

// Joins graphs built over overlapping subsets (out-of-core build): `members[s][i]` is the global id
// of node i of graphs[s]. A node's lists are united, and robust-pruned where they are more than
// `degree`, with `distance(a, b)`, a true squared distance between two global ids. Follow it by
// attach_unreachable from the whole set's medoid.
Graph merge_graphs(const std::vector<Graph>& graphs,
                   const std::vector<std::vector<NodeId>>& members, std::size_t n,
                   std::size_t degree, float alpha,
                   const std::function<float(NodeId, NodeId)>& distance);

}  // namespace navis
