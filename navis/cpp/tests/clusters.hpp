// Vectors like real ones: Gaussian clusters of unequal sizes, each flat (few dimensions of its own)
// but for a little noise.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../kernels.hpp"
#include "../prune.hpp"
#include "../vamana.hpp"

namespace navis::testing {

struct Clusters {
  std::size_t dim;
  std::vector<float> base, queries;

  std::size_t size() const { return base.size() / dim; }
  std::size_t query_count() const { return queries.size() / dim; }
  const float* vector(std::size_t i) const { return base.data() + i * dim; }
  const float* query(std::size_t i) const { return queries.data() + i * dim; }
  float distance(NodeId a, NodeId b) const { return kernels::l2(vector(a), vector(b), dim); }
};

inline Clusters make_clusters(std::size_t n, std::size_t queries, std::size_t dim, unsigned seed,
                              std::size_t clusters = 200, std::size_t intrinsic = 24) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::exponential_distribution<double> exponential;  // normalised: Dirichlet(1)
  std::vector<double> weights(clusters);
  for (double& weight : weights) weight = exponential(random);
  std::discrete_distribution<std::size_t> cluster(weights.begin(), weights.end());
  std::vector<float> centres(clusters * dim), axes(clusters * intrinsic * dim);
  for (float& value : centres) value = normal(random);
  const float scale = 1.0F / std::sqrt(static_cast<float>(intrinsic));
  for (float& value : axes) value = scale * normal(random);
  const auto fill = [&](std::vector<float>& rows, std::size_t count) {
    rows.resize(count * dim);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t c = cluster(random);
      float* row = rows.data() + i * dim;
      for (std::size_t j = 0; j < dim; ++j) row[j] = centres[c * dim + j] + 0.05F * normal(random);
      for (std::size_t t = 0; t < intrinsic; ++t) {
        const float along = normal(random);
        const float* axis = axes.data() + (c * intrinsic + t) * dim;
        for (std::size_t j = 0; j < dim; ++j) row[j] += along * axis[j];
      }
    }
  };
  Clusters made{dim, {}, {}};
  fill(made.base, n);
  fill(made.queries, queries);
  return made;
}

// Share of the 10 true nearest that a search finds; by distance, so that duplicates count as one
// another.
inline double recall_at_10(const Graph& graph, const Clusters& data, NodeId entry,
                           std::size_t search_list) {
  std::size_t hits = 0, wanted = 0;
  std::vector<float> exact(data.size());
  for (std::size_t q = 0; q < data.query_count(); ++q) {
    for (std::size_t i = 0; i < data.size(); ++i) {
      exact[i] = kernels::l2(data.query(q), data.vector(i), data.dim);
    }
    const std::size_t k = std::min<std::size_t>(10, exact.size());
    std::nth_element(exact.begin(), exact.begin() + static_cast<std::ptrdiff_t>(k - 1),
                     exact.end());
    const float bound = exact[k - 1];
    const auto found =
        greedy_search(graph, data.base.data(), data.dim, data.query(q), entry, search_list);
    for (std::size_t i = 0; i < k && i < found.size(); ++i) {
      hits += found[i].distance <= bound ? 1 : 0;
    }
    wanted += k;
  }
  return static_cast<double>(hits) / static_cast<double>(wanted);
}

}  // namespace navis::testing
