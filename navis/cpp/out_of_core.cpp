// Building from vectors that do not fit the memory: overlapping clusters are built one by one and
// their graphs merged (DiskANN, section 3.3). Codes, graphs and tables are held, vectors are not.
#include <algorithm>
#include <numeric>

#include "build_rows.hpp"
#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

namespace {

// Each row goes to its two nearest centres that still have room.
std::vector<std::vector<NodeId>> assign(BuildRows& rows, std::size_t n, const WorkingSpace& space,
                                        std::span<const float> centres, std::size_t largest) {
  const std::size_t dim = space.dim(), count = centres.size() / dim;
  std::vector<std::vector<NodeId>> members(count);
  std::vector<float> working(dim);
  std::vector<Neighbour> order(count);
  for (std::size_t i = 0; i < n; ++i) {
    space.stored(rows.row(i), working.data());
    for (std::size_t c = 0; c < count; ++c) {
      order[c] = {static_cast<NodeId>(c),
                  kernels::l2(working.data(), centres.data() + c * dim, dim)};
    }
    std::sort(order.begin(), order.end());
    std::size_t placed = 0;
    for (std::size_t c = 0; c < count && placed < 2; ++c) {
      auto& cluster = members[order[c].id];
      if (cluster.size() >= largest) continue;
      cluster.push_back(static_cast<NodeId>(i));
      ++placed;
    }
  }
  std::erase_if(members, [](const auto& m) { return m.empty(); });
  return members;
}

}  // namespace

void Index::build_out_of_core(const std::filesystem::path& folder, const IndexOptions& options,
                              const BuildData& data, const ProductQuantizer& quantizer,
                              std::span<const float> centres, std::size_t largest,
                              const BuildOptions& how, const Progress& progress) {
  const WorkingSpace space(options.dim, options.type, options.metric, options.radius);
  const std::size_t dim = space.dim(), bytes = quantizer.subspaces();
  if (centres.size() % dim || centres.size() / dim * largest < data.n) {
    throw Error(ErrorKind::bad_input, "the clusters have no room for every vector");
  }
  BuildRows rows(data, space.raw_bytes());
  const auto members = assign(rows, data.n, space, centres, largest);

  std::vector<std::uint8_t> codes(data.n * bytes);
  std::vector<float> working(dim), mean(dim);
  for (std::size_t i = 0; i < data.n; ++i) {
    space.stored(rows.row(i), working.data());
    quantizer.encode(working.data(), codes.data() + i * bytes);
    for (std::size_t d = 0; d < dim; ++d) mean[d] += working[d] / static_cast<float>(data.n);
  }
  const std::size_t total =
      std::accumulate(members.begin(), members.end(), std::size_t{0},
                      [](std::size_t sum, const auto& m) { return sum + m.size(); });
  // Two lists of two thirds seldom need pruning when united, which would be by codes alone.
  BuildOptions part_of = how;
  part_of.degree = std::max<std::size_t>(how.degree * 2 / 3, 1);
  std::vector<Graph> graphs;
  std::size_t before = 0;
  for (const auto& cluster : members) {
    std::vector<float> vectors(cluster.size() * dim);
    for (std::size_t i = 0; i < cluster.size(); ++i) {
      space.stored(rows.row(cluster[i]), vectors.data() + i * dim);
    }
    const Progress part = progress ? Progress([&](std::size_t done, std::size_t) {
      return progress(before + done, total);
    })
                                   : Progress{};
    graphs.push_back(build_vamana(vectors.data(), cluster.size(), dim, part_of, part));
    before += cluster.size();
  }
  std::vector<float> one(dim), other(dim);
  auto decoded = [&](NodeId id, float* out) { quantizer.decode(codes.data() + id * bytes, out); };
  auto distance = [&](NodeId a, NodeId b) {
    decoded(a, one.data());
    decoded(b, other.data());
    return kernels::l2(one.data(), other.data(), dim);
  };
  Graph graph = merge_graphs(graphs, members, data.n, how.degree, how.alpha, distance);
  graphs.clear();
  NodeId middle = 0;
  float nearest = std::numeric_limits<float>::max();
  for (NodeId i = 0; i < data.n; ++i) {
    decoded(i, one.data());
    const float d = kernels::l2(one.data(), mean.data(), dim);
    if (d < nearest) {
      nearest = d;
      middle = i;
    }
  }
  attach_unreachable(graph, middle, how.search_list, distance);
  write(
      folder, options, graph, [&](std::size_t i) { return rows.row(i); }, data.ids, quantizer,
      middle, how.seed, data.attributes);
}

}  // namespace navis
