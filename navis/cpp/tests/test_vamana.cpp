#include <doctest/doctest.h>

#include <limits>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "../vamana.hpp"
#include "clusters.hpp"

namespace navis {
namespace {

BuildOptions options_of(std::size_t degree, std::size_t search_list, std::size_t threads = 1) {
  BuildOptions options;
  options.degree = degree;
  options.search_list = search_list;
  options.threads = threads;
  return options;
}

std::size_t reachable(const Graph& graph, NodeId entry) {
  std::vector<char> met(graph.size(), 0);
  std::vector<NodeId> open{entry};
  met[entry] = 1;
  std::size_t count = 0;
  while (!open.empty()) {
    const NodeId node = open.back();
    open.pop_back();
    ++count;
    for (NodeId next : graph.of(node)) {
      if (met[next] == 0) open.push_back(next);
      met[next] = 1;
    }
  }
  return count;
}

void check_sound(const Graph& graph, std::size_t n, std::size_t degree) {
  REQUIRE(graph.size() == n);
  REQUIRE(graph.degree == degree);
  REQUIRE(graph.rows.size() == n * degree);
  std::size_t faults = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::set<NodeId> list(graph.of(i).begin(), graph.of(i).end());
    faults +=
        graph.counts[i] > degree || list.size() != graph.counts[i] || list.contains(NodeId(i));
    faults += !list.empty() && *list.rbegin() >= n;
  }
  CHECK(faults == 0);
}

Graph build_and_check(const testing::Clusters& data, const BuildOptions& options) {
  const Graph graph = build_vamana(data.base.data(), data.size(), data.dim, options);
  check_sound(graph, data.size(), options.degree);
  CHECK(reachable(graph, medoid(data.base.data(), data.size(), data.dim)) == data.size());
  return graph;
}

TEST_CASE("vamana: lists are nearest first, but for those attached in the end") {
  const testing::Clusters data = testing::make_clusters(1000, 1, 12, 21, 10, 6);
  const Graph graph = build_and_check(data, options_of(10, 20));
  std::size_t unsorted = 0;
  for (NodeId i = 0; i < graph.size(); ++i) {
    const auto nearer = [&](NodeId a, NodeId b) {
      return data.distance(i, a) < data.distance(i, b);
    };
    unsorted += std::is_sorted(graph.of(i).begin(), graph.of(i).end(), nearer) ? 0 : 1;
  }
  CHECK(unsorted <= 10);
}

bool same(const Graph& a, const Graph& b) {
  return a.degree == b.degree && a.counts == b.counts && a.rows == b.rows;
}

TEST_CASE("vamana: the medoid is the node nearest to the mean, the first of equals") {
  CHECK(medoid(nullptr, 0, 3) == kNoNode);
  const std::vector<float> line{0, 10, 4, 5, 6, 5};
  CHECK(medoid(line.data(), 6, 1) == 3);
}

TEST_CASE("vamana: no, one, two and equal vectors") {
  const BuildOptions options = options_of(4, 8);
  const Graph none = build_vamana(nullptr, 0, 3, options);
  check_sound(none, 0, 4);
  CHECK(greedy_search(none, nullptr, 3, nullptr, 0, 5).empty());

  const std::vector<float> two{1, 2, 3, 4, 5, 6};
  check_sound(build_vamana(two.data(), 1, 3, options), 1, 4);
  const Graph pair = build_vamana(two.data(), 2, 3, options);
  check_sound(pair, 2, 4);
  CHECK(pair.of(0)[0] == 1);
  CHECK(pair.of(1)[0] == 0);
  const auto found = greedy_search(pair, two.data(), 3, two.data() + 3, 0, 5);
  REQUIRE(found.size() == 2);
  CHECK(found[0].id == 1);
  CHECK(found[0].distance == 0.0F);
  CHECK(found[1].distance == 27.0F);

  for (std::size_t degree : {1, 2, 8}) {
    for (std::size_t threads : {1, 2}) {
      const testing::Clusters equal{4, std::vector<float>(1000 * 4, 0.25F), {}};
      build_and_check(equal, options_of(degree, 10, threads));
    }
  }
}

TEST_CASE("vamana: finds the nearest among clusters") {
  const testing::Clusters data = testing::make_clusters(20000, 200, 128, 11);
  const Graph graph = build_and_check(data, options_of(24, 48));
  const NodeId entry = medoid(data.base.data(), data.size(), data.dim);
  const double recall = testing::recall_at_10(graph, data, entry, 40);
  MESSAGE("recall@10 at L = 40: " << recall);
  CHECK(recall >= 0.97);
}

TEST_CASE("vamana: duplicates do not disconnect") {
  // 3000 nodes at 40 places, and 1000 nodes of their own.
  testing::Clusters data = testing::make_clusters(4000, 50, 16, 12, 20, 6);
  std::mt19937 random(12);
  for (std::size_t i = 0; i < 3000; ++i) {
    const auto* place = data.vector(3000 + random() % 40);
    std::copy_n(place, data.dim, data.base.data() + i * data.dim);
  }
  for (std::size_t degree : {4, 16}) {
    for (std::size_t threads : {1, 2}) {
      const Graph graph = build_and_check(data, options_of(degree, 32, threads));
      const NodeId entry = medoid(data.base.data(), data.size(), data.dim);
      if (degree == 16) CHECK(testing::recall_at_10(graph, data, entry, 100) >= 0.95);
    }
  }
}

TEST_CASE("vamana: one thread builds the same graph again, another seed another one") {
  const testing::Clusters data = testing::make_clusters(2000, 1, 24, 13, 20, 8);
  BuildOptions options = options_of(12, 24);
  const Graph graph = build_and_check(data, options);
  CHECK(same(graph, build_and_check(data, options)));
  options.seed = 1;
  CHECK(!same(graph, build_and_check(data, options)));
}

TEST_CASE("vamana: threads build as good a graph") {
  const testing::Clusters data = testing::make_clusters(6000, 100, 32, 14, 60, 12);
  const NodeId entry = medoid(data.base.data(), data.size(), data.dim);
  const Graph one = build_and_check(data, options_of(16, 32, 1));
  const Graph four = build_and_check(data, options_of(16, 32, 4));
  const double difference =
      testing::recall_at_10(one, data, entry, 20) - testing::recall_at_10(four, data, entry, 20);
  CHECK(std::abs(difference) <= 0.02);
}

TEST_CASE("vamana: slack as small and as large as it may be") {
  const testing::Clusters data = testing::make_clusters(1500, 1, 8, 15, 10, 4);
  for (float slack : {1.0F, 1.01F, 8.0F}) {
    BuildOptions options = options_of(255, 40);
    options.slack = slack;
    build_and_check(data, options);
    options.degree = 3;
    build_and_check(data, options);
    options.degree = 1;
    build_and_check(data, options);
  }
}

TEST_CASE("vamana: tells its progress in the caller's thread, and stops") {
  const testing::Clusters data = testing::make_clusters(3000, 1, 8, 16, 10, 4);
  for (std::size_t threads : {1, 3}) {
    const std::thread::id caller = std::this_thread::get_id();
    std::size_t last = 0, calls = 0;
    build_vamana(data.base.data(), data.size(), data.dim, options_of(8, 16, threads),
                 [&](std::size_t done, std::size_t total) {
                   CHECK(std::this_thread::get_id() == caller);
                   CHECK(total == data.size());
                   CHECK(done >= last);
                   last = done;
                   ++calls;
                   return true;
                 });
    CHECK(last == data.size());
    if (threads == 1) CHECK(calls >= 3);
    const auto build_with = [&](const Progress& progress) {
      build_vamana(data.base.data(), data.size(), data.dim, options_of(8, 16, threads), progress);
    };
    try {
      build_with([](std::size_t, std::size_t) { return false; });
      FAIL("was not stopped");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::closed);
    }
    CHECK_THROWS_AS(build_with([](std::size_t, std::size_t) -> bool { throw 7; }), int);
  }
}

TEST_CASE("vamana: bad options and values are refused") {
  std::vector<float> vectors(20 * 4, 1.0F);
  const auto refused = [&](auto&& change, std::size_t dim = 4) {
    BuildOptions options;
    change(options);
    try {
      build_vamana(vectors.data(), 20, dim, options);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::bad_input;
    }
    return false;
  };
  CHECK(!refused([](BuildOptions&) {}));
  CHECK(refused([](BuildOptions&) {}, 0));
  CHECK(refused([](BuildOptions& o) { o.degree = 0; }));
  CHECK(refused([](BuildOptions& o) { o.degree = 256; }));
  CHECK(refused([](BuildOptions& o) { o.search_list = 0; }));
  CHECK(refused([](BuildOptions& o) { o.alpha = 0.9F; }));
  CHECK(refused([](BuildOptions& o) { o.alpha = std::numeric_limits<float>::quiet_NaN(); }));
  CHECK(refused([](BuildOptions& o) { o.slack = 0.5F; }));
  vectors[33] = std::numeric_limits<float>::quiet_NaN();
  CHECK(refused([](BuildOptions&) {}));
  vectors[33] = std::numeric_limits<float>::infinity();
  CHECK(refused([](BuildOptions&) {}));
}

TEST_CASE("vamana: nodes that cannot be reached are attached") {
  const testing::Clusters data = testing::make_clusters(60, 1, 3, 17, 3, 2);
  const auto distance = [&](NodeId a, NodeId b) { return data.distance(a, b); };
  SUBCASE("where there is room") {
    Graph graph{3, std::vector<std::uint8_t>(60, 0), std::vector<NodeId>(180, kNoNode)};
    CHECK(attach_unreachable(graph, 5, 8, distance) == 59);
    check_sound(graph, 60, 3);
    CHECK(reachable(graph, 5) == 60);
    CHECK(attach_unreachable(graph, 5, 8, distance) == 0);
  }
  SUBCASE("where all lists are full") {
    Graph graph{2, std::vector<std::uint8_t>(60, 2), std::vector<NodeId>(120)};
    for (NodeId i = 0; i < 60; ++i) {  // twenty triangles
      graph.rows[2 * i] = i / 3 * 3 + (i + 1) % 3;
      graph.rows[2 * i + 1] = i / 3 * 3 + (i + 2) % 3;
    }
    CHECK(attach_unreachable(graph, 7, 8, distance) >= 19);
    check_sound(graph, 60, 2);
    CHECK(reachable(graph, 7) == 60);
  }
  SUBCASE("from an entry that there is") {
    Graph graph{3, std::vector<std::uint8_t>(60, 0), std::vector<NodeId>(180, kNoNode)};
    CHECK_THROWS_AS(attach_unreachable(graph, 60, 8, distance), Error);
    Graph none;
    CHECK(attach_unreachable(none, 0, 8, distance) == 0);
  }
}

TEST_CASE("vamana: greedy search finds all when its list holds all") {
  const testing::Clusters data = testing::make_clusters(300, 10, 8, 18, 5, 4);
  const Graph graph = build_and_check(data, options_of(8, 16));
  const NodeId entry = medoid(data.base.data(), data.size(), data.dim);
  for (std::size_t q = 0; q < data.query_count(); ++q) {
    const auto found =
        greedy_search(graph, data.base.data(), data.dim, data.query(q), entry, data.size());
    REQUIRE(found.size() == data.size());
    CHECK(std::is_sorted(found.begin(), found.end()));
    for (const Neighbour& near : found) {
      CHECK(near.distance == kernels::l2(data.query(q), data.vector(near.id), data.dim));
    }
  }
}

// What an out-of-core build does: parts that fit are built apart and their lists joined.
TEST_CASE("vamana: overlapping halves merged are as good as the whole") {
  const testing::Clusters data = testing::make_clusters(8000, 200, 48, 19, 80, 16);
  const std::size_t n = data.size();
  // Which side of two far vectors; the middle 40 % belong to both.
  std::vector<std::pair<float, NodeId>> sides;
  for (NodeId i = 0; i < n; ++i) sides.emplace_back(data.distance(i, 0) - data.distance(i, 1), i);
  std::sort(sides.begin(), sides.end());
  std::vector<std::vector<NodeId>> members(2);
  for (std::size_t i = 0; i < n; ++i) {
    if (i < n * 7 / 10) members[0].push_back(sides[i].second);
    if (i >= n * 3 / 10) members[1].push_back(sides[i].second);
  }
  const BuildOptions options = options_of(24, 48);
  std::vector<Graph> graphs;
  for (const std::vector<NodeId>& part : members) {
    std::vector<float> rows;
    for (NodeId i : part) rows.insert(rows.end(), data.vector(i), data.vector(i) + data.dim);
    graphs.push_back(build_vamana(rows.data(), part.size(), data.dim, options));
  }
  const auto distance = [&](NodeId a, NodeId b) { return data.distance(a, b); };
  const NodeId entry = medoid(data.base.data(), n, data.dim);
  Graph merged = merge_graphs(graphs, members, n, options.degree, options.alpha, distance);
  attach_unreachable(merged, entry, options.search_list, distance);
  check_sound(merged, n, options.degree);
  CHECK(reachable(merged, entry) == n);
  const double whole = testing::recall_at_10(build_and_check(data, options), data, entry, 40);
  const double joined = testing::recall_at_10(merged, data, entry, 40);
  MESSAGE("recall@10 at L = 40: whole " << whole << ", merged " << joined);
  CHECK(joined >= whole - 0.01);

  SUBCASE("and the order of the parts does not matter") {
    std::swap(graphs[0], graphs[1]);
    std::swap(members[0], members[1]);
    Graph other = merge_graphs(graphs, members, n, options.degree, options.alpha, distance);
    attach_unreachable(other, entry, options.search_list, distance);
    CHECK(same(merged, other));
  }
}

TEST_CASE("vamana: a merge keeps lists that fit and refuses what does not") {
  const testing::Clusters data = testing::make_clusters(10, 1, 3, 20, 2, 2);
  const auto distance = [&](NodeId a, NodeId b) { return data.distance(a, b); };
  Graph first{2, {1, 1}, {1, kNoNode, 0, kNoNode}};
  Graph second{2, {2, 0, 1}, {1, 2, kNoNode, kNoNode, 0, kNoNode}};
  const Graph merged = merge_graphs({first, second}, {{4, 7}, {4, 7, 9}}, 10, 3, 1.2F, distance);
  check_sound(merged, 10, 3);
  const std::set<NodeId> four(merged.of(4).begin(), merged.of(4).end());
  CHECK(four == std::set<NodeId>{7, 9});
  CHECK(merged.of(7)[0] == 4);
  CHECK(merged.of(9)[0] == 4);
  CHECK(merged.of(0).empty());
  CHECK_THROWS_AS(merge_graphs({first}, {}, 10, 3, 1.2F, distance), Error);
  CHECK_THROWS_AS(merge_graphs({first}, {{1}}, 10, 3, 1.2F, distance), Error);
  CHECK_THROWS_AS(merge_graphs({first}, {{1, 10}}, 10, 3, 1.2F, distance), Error);
  CHECK_THROWS_AS(merge_graphs({first}, {{1, 2}}, 10, 0, 1.2F, distance), Error);
}

}  // namespace
}  // namespace navis
