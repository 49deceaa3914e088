#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "../kernels.hpp"
#include "../prune.hpp"

namespace navis {
namespace {

// A node at the origin and its candidates, ascending by distance.
struct Candidates {
  std::size_t dim;
  std::vector<float> rows;
  std::vector<Neighbour> sorted;

  float distance(std::size_t i, std::size_t j) const {
    return kernels::l2(rows.data() + sorted[i].id * dim, rows.data() + sorted[j].id * dim, dim);
  }
};

Candidates from_rows(std::size_t dim, std::vector<float> rows) {
  Candidates made{dim, std::move(rows), {}};
  const std::vector<float> origin(dim);
  for (NodeId id = 0; id * dim < made.rows.size(); ++id) {
    made.sorted.push_back({id, kernels::l2(origin.data(), made.rows.data() + id * dim, dim)});
  }
  std::sort(made.sorted.begin(), made.sorted.end());
  return made;
}

Candidates random_candidates(std::size_t n, std::size_t dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(n * dim);
  for (float& value : rows) value = normal(random);
  return from_rows(dim, std::move(rows));
}

// The rounds written down plainly, every distance computed.
std::vector<std::size_t> plain_prune(const Candidates& all, std::size_t degree, float alpha,
                                     bool saturate) {
  std::vector<std::size_t> kept;
  const auto is_kept = [&](std::size_t c) {
    return std::find(kept.begin(), kept.end(), c) != kept.end();
  };
  const float root = std::sqrt(alpha);
  for (float bar : {1.0F, root, alpha, alpha * root, alpha * alpha}) {
    for (std::size_t c = 0; c < all.sorted.size(); ++c) {
      if (is_kept(c) || kept.size() >= degree) continue;
      const bool occluded = std::any_of(kept.begin(), kept.end(), [&](std::size_t k) {
        return k < c && bar * all.distance(k, c) <= all.sorted[c].distance;
      });
      if (!occluded) kept.push_back(c);
    }
  }
  for (std::size_t c = 0; saturate && c < all.sorted.size(); ++c) {
    if (!is_kept(c) && kept.size() < degree) kept.push_back(c);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

TEST_CASE("prune: the lazy rounds keep what the plain ones do, with fewer distances") {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const std::size_t n = seed * 5;
    const Candidates all = random_candidates(n, 2 + seed % 7, seed);
    for (std::size_t degree : {0, 1, 4, 24, 300}) {
      for (float alpha : {1.0F, 1.1F, 1.2F, 2.0F}) {
        for (bool saturate : {false, true}) {
          std::size_t calls = 0, same = 0;
          const auto kept =
              robust_prune(all.sorted, degree, alpha, saturate, [&](std::size_t i, std::size_t j) {
                ++calls;
                same += i == j ? 1 : 0;
                return all.distance(i, j);
              });
          CHECK(kept == plain_prune(all, degree, alpha, saturate));
          CHECK(kept.size() <= degree);
          CHECK(same == 0);  // always two distinct vectors
          CHECK(calls <= n * kept.size());
          if (saturate) CHECK(kept.size() == std::min(degree, n));
        }
      }
    }
  }
}

TEST_CASE("prune: at alpha = 1 it is the relative neighbourhood of those taken") {
  const Candidates all = random_candidates(120, 6, 77);
  const auto distance = [&](std::size_t i, std::size_t j) { return all.distance(i, j); };
  const auto kept = robust_prune(all.sorted, 120, 1.0F, false, distance);
  for (std::size_t c = 0; c < all.sorted.size(); ++c) {
    const bool occluded = std::any_of(kept.begin(), kept.end(), [&](std::size_t k) {
      return k < c && all.distance(k, c) <= all.sorted[c].distance;
    });
    CHECK(occluded == !std::binary_search(kept.begin(), kept.end(), c));
  }
}

TEST_CASE("prune: a full neighbourhood leaves room for the way out") {
  // Thirty around the node, which alpha spares from one another, and one behind them.
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  std::vector<float> rows(31 * 40);
  for (std::size_t i = 0; i < 30; ++i) {
    for (std::size_t j = 0; j < 40; ++j) rows[i * 40 + j] = normal(random) + (j == 0 ? 8.0F : 0.0F);
  }
  rows[30 * 40] = -40;
  const Candidates all = from_rows(40, rows);
  const auto distance = [&](std::size_t i, std::size_t j) { return all.distance(i, j); };
  const auto kept = robust_prune(all.sorted, 25, 1.5F, false, distance);
  CHECK(kept.size() == 25);
  CHECK(all.sorted[kept.back()].id == 30);
}

TEST_CASE("prune: duplicates of the node and of one another") {
  const Candidates all = from_rows(2, {0, 0, 0, 0, 0, 0, 3, 0, 3, 0, 0, 4});
  const auto distance = [&](std::size_t i, std::size_t j) { return all.distance(i, j); };
  const auto ids = [&](float alpha, bool saturate) {
    std::vector<NodeId> list;
    for (std::size_t i : robust_prune(all.sorted, 4, alpha, saturate, distance)) {
      list.push_back(all.sorted[i].id);
    }
    return list;
  };
  CHECK(ids(1.2F, false) == std::vector<NodeId>{0, 3, 5});  // one of each place
  CHECK(ids(1.0F, false) == std::vector<NodeId>{0});        // which hides all that lies beyond it
  CHECK(ids(1.2F, true) == std::vector<NodeId>{0, 1, 3, 5});
}

struct Delta {
  Candidates all;
  std::vector<float> newcomer;

  std::size_t victim(float alpha) const {
    std::vector<float> to_new;
    for (const Neighbour& entry : all.sorted) {
      to_new.push_back(kernels::l2(newcomer.data(), all.rows.data() + entry.id * all.dim, all.dim));
    }
    const std::vector<float> origin(all.dim);
    const std::size_t position = delta_prune_victim(
        all.sorted, [&](std::size_t i) { return to_new[i]; },
        kernels::l2(newcomer.data(), origin.data(), all.dim), alpha,
        [&](std::size_t i, std::size_t j) {
          CHECK(i != j);
          return all.distance(i, j);
        });
    REQUIRE(position < all.sorted.size());
    return all.sorted[position].id;
  }
};

TEST_CASE("prune: the victim of a delta prune") {
  const auto east_north_west = [] { return from_rows(2, {10, 0, 0, 9, -8, 0}); };
  SUBCASE("the farthest that the newcomer occludes") {
    CHECK(Delta{east_north_west(), {6, 0}}.victim(1.2F) == 0);
    CHECK(Delta{east_north_west(), {0, 5}}.victim(1.2F) == 1);
    CHECK(Delta{east_north_west(), {-5, 0}}.victim(1.2F) == 2);
    CHECK(Delta{from_rows(2, {10, 0, 9, 1, 0, 20}), {6, 0}}.victim(1.2F) == 0);
  }
  SUBCASE("only by a newcomer nearer than the entry") {
    // 14 lies close to 10, but behind it; so the last rule decides.
    CHECK(Delta{from_rows(2, {10, 0, 0, 11}), {14, 0}}.victim(1.2F) == 1);
  }
  SUBCASE("else the farthest that a nearer entry occludes") {
    CHECK(Delta{from_rows(2, {10, 0, 11, 0, 0, 12, -13, 0}), {0, -5}}.victim(1.2F) == 1);
    CHECK(Delta{from_rows(2, {10, 0, 0, 30, 11, 0, 12, 0}), {0, -5}}.victim(1.2F) == 3);
  }
  SUBCASE("else the farthest") {
    CHECK(Delta{from_rows(2, {10, 0, 0, 11, -12, 0}), {0, -5}}.victim(1.2F) == 2);
  }
  SUBCASE("one of two equal entries rather than the only way out") {
    CHECK(Delta{from_rows(2, {5, 0, 5, 0, 0, 30}), {0, -5}}.victim(1.2F) == 1);
  }
  SUBCASE("of one entry, that") { CHECK(Delta{from_rows(2, {1, 0}), {0, -5}}.victim(1.2F) == 0); }
}

}  // namespace
}  // namespace navis
