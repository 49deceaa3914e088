// Making an index with a graph made elsewhere.
#include <algorithm>

#include "build_rows.hpp"

namespace navis {

namespace {

void check_graph(const Graph& graph, std::size_t n, std::size_t degree, NodeId entry) {
  const auto refuse = [](const std::string& why) {
    throw Error(ErrorKind::bad_input, "the graph given: " + why);
  };
  if (graph.size() != n) refuse("as many nodes as vectors are needed");
  if (graph.degree > degree) refuse("its lists are longer than the index's degree");
  if (n > 0 && entry >= n) refuse("its entry is no node");
  std::vector<NodeId> sorted;
  for (std::size_t node = 0; node < n; ++node) {
    const std::string name = "node " + std::to_string(node);
    if (graph.counts[node] > graph.degree) refuse(name + " has more edges than there is room for");
    const auto list = graph.of(node);
    sorted.assign(list.begin(), list.end());
    std::sort(sorted.begin(), sorted.end());
    if (!sorted.empty() && sorted.back() >= n) refuse(name + " has an edge to no node");
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      refuse(name + " has an edge twice");
    }
    if (std::binary_search(sorted.begin(), sorted.end(), node)) {
      refuse(name + " has an edge to itself");
    }
  }
}

}  // namespace

void Index::build_from_graph(const std::filesystem::path& folder, const IndexOptions& options,
                             const BuildData& data, const Graph& graph, NodeId entry,
                             const ProductQuantizer& quantizer, std::uint64_t seed,
                             const Progress& progress) {
  check_graph(graph, data.n, options.degree, entry);
  const WorkingSpace space(options.dim, options.type, options.metric, options.radius);
  BuildRows rows(data, space.raw_bytes());
  // Each row is asked for three times at most: to be ordered, encoded, and put on its page.
  std::size_t asked = 0;
  auto stored = [&](std::size_t i) {
    if (progress && asked % 1024 == 0 && !progress(asked, 3 * data.n)) {
      throw Error(ErrorKind::closed, "the build was stopped");
    }
    ++asked;
    return rows.row(i);
  };
  write(folder, options, graph, stored, data.ids, quantizer, entry, seed, data.attributes);
}

}  // namespace navis
