#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "../kernels.hpp"
#include "../packing.hpp"
#include "clusters.hpp"

namespace navis {
namespace {

using Lists = std::vector<std::vector<NodeId>>;

std::vector<std::size_t> pack(const Lists& lists, std::size_t per_page, std::size_t start) {
  return pack_pages(lists.size(), per_page, start,
                    [&](std::size_t i) { return std::span<const NodeId>(lists[i]); });
}

bool is_permutation_of_all(std::vector<std::size_t> order, std::size_t n) {
  std::sort(order.begin(), order.end());
  std::vector<std::size_t> all(n);
  std::iota(all.begin(), all.end(), std::size_t{0});
  return order == all;
}

// As the header says it, in quadratic time.
std::vector<std::size_t> plain_pack(const Lists& lists, std::size_t per_page, std::size_t start) {
  const std::size_t n = lists.size();
  std::vector<std::size_t> seeds;
  std::vector<char> met(n, 0);
  const auto search_from = [&](std::size_t root) {
    if (met[root]) return;
    met[root] = 1;
    seeds.push_back(root);
    for (std::size_t next = seeds.size() - 1; next < seeds.size(); ++next) {
      for (NodeId to : lists[seeds[next]]) {
        if (to >= n || met[to]) continue;
        met[to] = 1;
        seeds.push_back(to);
      }
    }
  };
  if (start < n) search_from(start);
  for (std::size_t i = 0; i < n; ++i) search_from(i);

  const auto weight = [&](std::size_t from, std::size_t to) {
    std::size_t sum = 0;
    for (std::size_t place = 0; place < lists[from].size(); ++place) {
      if (lists[from][place] == to) sum += 1020 / (4 + place);
    }
    return sum;
  };
  std::vector<std::size_t> order;
  std::set<std::size_t> placed;
  while (order.size() < n) {
    const std::size_t first = order.size() / per_page * per_page;
    std::vector<std::size_t> seen;  // in the order in which the page meets them
    for (std::size_t place = first; place < order.size(); ++place) {
      for (NodeId to : lists[order[place]]) {
        if (to < n && !placed.contains(to)) seen.push_back(to);
      }
      for (std::size_t from = 0; from < n; ++from) {
        for (NodeId to : lists[from]) {
          if (to == order[place] && !placed.contains(from)) seen.push_back(from);
        }
      }
    }
    std::size_t best = n;
    std::size_t most = 0;
    for (std::size_t i : seen) {
      std::size_t sum = 0;
      for (std::size_t place = first; place < order.size(); ++place) {
        sum += weight(i, order[place]) + weight(order[place], i);
      }
      if (sum > most) best = i, most = sum;
    }
    if (best == n) {
      best = *std::find_if(seeds.begin(), seeds.end(),
                           [&](std::size_t i) { return !placed.contains(i); });
    }
    placed.insert(best);
    order.push_back(best);
  }
  return order;
}

Lists random_lists(std::size_t n, std::size_t degree, unsigned seed) {
  std::mt19937 random(seed);
  Lists lists(n);
  for (std::size_t i = 0; i < n; ++i) {
    std::set<NodeId> list;
    for (std::size_t k = 0; k < degree; ++k) {
      const NodeId to = random() % 8 == 0 ? static_cast<NodeId>(n + random() % 9)  // ignored
                                          : static_cast<NodeId>(random() % n);
      if (to != i) list.insert(to);
    }
    lists[i].assign(list.begin(), list.end());
  }
  return lists;
}

TEST_CASE("packing: the order of the definition") {
  for (unsigned seed = 0; seed < 12; ++seed) {
    const std::size_t n = 1 + seed * 9;
    const Lists lists = random_lists(n, seed % 5, seed);
    for (std::size_t per_page : {1, 3, 7, 200}) {
      CAPTURE(seed);
      CAPTURE(per_page);
      const auto order = pack(lists, per_page, seed % n);
      CHECK(order == plain_pack(lists, per_page, seed % n));
      CHECK(is_permutation_of_all(order, n));
    }
  }
}

TEST_CASE("packing: small and odd inputs") {
  CHECK(pack({}, 4, 0).empty());
  CHECK(pack({{}}, 4, 0) == std::vector<std::size_t>{0});
  CHECK(pack({{0}}, 4, 7) == std::vector<std::size_t>{0});  // a loop, and no such start
  CHECK(pack({{}, {}, {}}, 2, 1) == std::vector<std::size_t>{1, 0, 2});
  CHECK(pack({{1, 1, 9}, {0}, {0}}, 2, 2) == std::vector<std::size_t>{2, 0, 1});
  CHECK_THROWS_AS(pack({{}}, 0, 0), Error);
}

TEST_CASE("packing: the front of a long list counts, its end too") {
  Lists lists(2000);
  for (NodeId i = 1; i < 2000; ++i) lists[0].push_back(2000 - i);
  CHECK(pack(lists, 2000, 0)[1] == 1999);
  lists[0].resize(1100);
  lists[0].push_back(5);
  lists[5] = {6};
  const auto order = pack(lists, 2000, 0);
  CHECK(order[1] == 1999);
  CHECK(std::find(order.begin(), order.end(), 5) - order.begin() == 1101);
  CHECK(order[1102] == 6);
}

TEST_CASE("packing: cliques become pages") {
  const std::size_t cliques = 50, members = 8;
  std::vector<NodeId> names(cliques * members);
  std::iota(names.begin(), names.end(), NodeId{0});
  std::mt19937 random(8);
  std::shuffle(names.begin(), names.end(), random);
  Lists lists(names.size());
  for (std::size_t c = 0; c < cliques; ++c) {
    for (std::size_t i = 0; i < members; ++i) {
      for (std::size_t j = 0; j < members; ++j) {
        if (i != j) lists[names[c * members + i]].push_back(names[c * members + j]);
      }
    }
    lists[names[c * members]].push_back(names[(c + 1) % cliques * members]);
  }
  const auto order = pack(lists, members, names[0]);
  for (std::size_t c = 0; c < cliques; ++c) {
    const std::vector<NodeId> clique(
        names.begin() + static_cast<std::ptrdiff_t>(c * members),
        names.begin() + static_cast<std::ptrdiff_t>((c + 1) * members));
    CHECK(page_sharing(order, members, clique) == doctest::Approx(1.0 - 1.0 / members));
  }
}

TEST_CASE("packing: what page sharing counts") {
  const std::vector<std::size_t> order{3, 1, 0, 2, 4};
  CHECK(page_sharing(order, 2, {}) == 0.0);
  CHECK(page_sharing(order, 2, std::vector<NodeId>{3, 1}) == 0.5);
  CHECK(page_sharing(order, 2, std::vector<NodeId>{3, 0, 4}) == 0.0);
  CHECK(page_sharing(order, 2, std::vector<NodeId>{3, 1, 0, 2}) == 0.5);
}

// Everything that a search expands, as the disk index would read it.
std::vector<NodeId> expansions(const Graph& graph, const testing::Clusters& data, std::size_t query,
                               NodeId entry, std::size_t search_list) {
  std::vector<NodeId> expanded;
  for (const Neighbour& found :
       greedy_search(graph, data.base.data(), data.dim, data.query(query), entry, search_list)) {
    expanded.push_back(found.id);
  }
  return expanded;
}

TEST_CASE("packing: searches of a built graph share pages") {
  const testing::Clusters data = testing::make_clusters(20000, 100, 128, 9);
  BuildOptions options;
  options.degree = 32;
  options.search_list = 64;
  const Graph graph = build_vamana(data.base.data(), data.size(), data.dim, options);
  const NodeId entry = medoid(data.base.data(), data.size(), data.dim);
  const auto order = pack_pages(data.size(), 31, entry, [&](std::size_t i) { return graph.of(i); });
  REQUIRE(is_permutation_of_all(order, data.size()));
  CHECK(order[0] == entry);
  std::vector<std::size_t> by_id(data.size());
  std::iota(by_id.begin(), by_id.end(), std::size_t{0});
  double packed = 0, unpacked = 0;
  for (std::size_t q = 0; q < data.query_count(); ++q) {
    const std::vector<NodeId> expanded = expansions(graph, data, q, entry, 128);
    packed += page_sharing(order, 31, expanded) / static_cast<double>(data.query_count());
    unpacked += page_sharing(by_id, 31, expanded) / static_cast<double>(data.query_count());
  }
  MESSAGE("page sharing at L = 128: packed " << packed << ", by id " << unpacked);
  CHECK(packed >= 0.6);
  CHECK(unpacked < 0.2);
}

TEST_CASE("packing: 100,000 lists of 32 in a second") {
  // Neighbours near in id, as a graph's are in space, so that candidates repeat.
  const std::size_t n = 100000, degree = 32;
  std::vector<NodeId> rows(n * degree);
  std::mt19937 random(10);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < degree; ++k) {
      rows[i * degree + k] = static_cast<NodeId>((i + 1 + random() % 200) % n);
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto order = pack_pages(n, 31, 0, [&](std::size_t i) {
    return std::span<const NodeId>(rows.data() + i * degree, degree);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  CHECK(is_permutation_of_all(order, n));
  MESSAGE("packed in " << seconds.count() << " s");
#if defined(NDEBUG) || defined(__OPTIMIZE__)
  WARN(seconds.count() <= 1.0);  // a busy machine is no failure
#endif
}

}  // namespace
}  // namespace navis

TEST_CASE("packing: near vectors share a page, each run keeping its members") {
  using navis::group_nearest;
  namespace kernels = navis::kernels;
  std::mt19937 random(3);
  std::normal_distribution<float> noise;
  constexpr std::size_t kDim = 8;
  for (const std::size_t per_page : {2, 3, 8}) {
    for (const std::size_t n : {0, 1, 5, 29, 30, 500}) {
      constexpr std::size_t kPerUnit = 29;
      // Around few centres, so that there is something to bring together.
      std::vector<float> vectors(n * kDim);
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t d = 0; d < kDim; ++d) {
          vectors[i * kDim + d] = static_cast<float>(random() % 5 * 20) * (d == 0) + noise(random);
        }
      }
      std::vector<std::size_t> order(n);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::shuffle(order.begin(), order.end(), random);
      const auto before = order;
      group_nearest(order, kPerUnit, per_page, kDim, [&](std::size_t i, float* to) {
        std::copy_n(vectors.begin() + static_cast<std::ptrdiff_t>(i * kDim), kDim, to);
      });
      auto spread = [&](const std::vector<std::size_t>& of) {
        double sum = 0;
        for (std::size_t i = 1; i < n; ++i) {
          if (i % per_page == 0) continue;
          sum += kernels::l2(&vectors[of[i] * kDim], &vectors[of[i - i % per_page] * kDim], kDim);
        }
        return sum;
      };
      for (std::size_t first = 0; first < n; first += kPerUnit) {
        const auto last = static_cast<std::ptrdiff_t>(std::min(n, first + kPerUnit));
        const auto at = static_cast<std::ptrdiff_t>(first);
        CHECK(std::is_permutation(order.begin() + at, order.begin() + last, before.begin() + at,
                                  before.begin() + last));
      }
      if (n == 500) CHECK(spread(order) < 0.5 * spread(before));
      // Infinitely far apart: still an order.
      std::fill(vectors.begin(), vectors.end(), 0.0F);
      for (std::size_t i = 0; i < n; ++i) vectors[i * kDim] = i % 2 ? 3e38F : -3e38F;
      group_nearest(order, kPerUnit, per_page, kDim, [&](std::size_t i, float* to) {
        std::copy_n(vectors.begin() + static_cast<std::ptrdiff_t>(i * kDim), kDim, to);
      });
      CHECK(std::is_permutation(order.begin(), order.end(), before.begin(), before.end()));
    }
  }
}
