#include <doctest/doctest.h>

#include <cmath>
#include <thread>

#include "helpers.hpp"

using namespace navis;
using namespace navis::testing;

namespace {

const Layout kLayouts[] = {Layout::selective, Layout::packed};
const FilterMethod kMethods[] = {FilterMethod::automatic, FilterMethod::walk, FilterMethod::scan};

// Attributes by row, as the calls want them.
struct Rows {
  std::vector<std::uint64_t> at{0};
  std::vector<std::uint32_t> labels;
  std::vector<double> values;

  void add(const std::vector<std::uint32_t>& of, double value) {
    labels.insert(labels.end(), of.begin(), of.end());
    at.push_back(labels.size());
    values.push_back(value);
  }
  AttributeRows view(std::size_t first = 0) const {
    return {at.data() + first, labels.data(), values.data() + first};
  }
  std::vector<std::uint32_t> of(std::size_t i) const {
    return {labels.begin() + static_cast<std::ptrdiff_t>(at[i]),
            labels.begin() + static_cast<std::ptrdiff_t>(at[i + 1])};
  }
};

bool has(const std::vector<std::uint32_t>& labels, std::uint32_t label) {
  return std::count(labels.begin(), labels.end(), label) > 0;
}

// What a filter means, spelt out.
bool passes(const Filter& f, const std::vector<std::uint32_t>& labels, double value) {
  bool any = f.any_of.empty();
  for (const auto label : f.any_of) any |= has(labels, label);
  for (const auto label : f.all_of) any &= has(labels, label);
  for (const auto label : f.none_of) any &= !has(labels, label);
  return any && (!f.between || (value >= f.between->first && value <= f.between->second));
}

// Row i: label i % 2; label 10 + i % 10; label 100 + i % 100; for every third no value.
Rows some_rows(std::size_t n) {
  Rows rows;
  for (std::size_t i = 0; i < n; ++i) {
    const auto u = static_cast<std::uint32_t>(i);
    if (i % 7 == 6) {
      rows.add({}, kNoValue);
    } else {
      rows.add({100 + u % 100, u % 2, 10 + u % 10, u % 2},
               i % 3 ? static_cast<double>(i) : kNoValue);
    }
  }
  return rows;
}

void build(const std::filesystem::path& folder, const Data& data, std::size_t n, Layout layout,
           const Rows& rows) {
  BuildOptions how;
  how.degree = 24;
  how.search_list = 48;
  const auto ids = ids_of(n);
  BuildData rows_in{.raw = data.raw(), .ids = ids.data(), .n = n, .attributes = rows.view()};
  Index::build(folder, options(data, layout), rows_in, quantizer(data, 8), how, {});
}

OpenOptions small_session() {
  OpenOptions o;
  o.pending_bytes = 20'000;
  o.durability = Durability::none;
  return o;
}

Found search(Index& index, const Data& queries, std::size_t k, std::size_t list,
             const std::vector<Filter>& filters, FilterMethod method = FilterMethod::automatic,
             std::size_t threads = 1) {
  SearchOptions o;
  o.k = static_cast<std::uint32_t>(k);
  o.list = static_cast<std::uint32_t>(list);
  o.threads = static_cast<std::uint32_t>(threads);
  o.filters = filters;
  o.filter_method = method;
  Found found{std::vector<std::uint64_t>(queries.n * k), std::vector<float>(queries.n * k)};
  index.search(queries.row(0), queries.n, o, found.ids.data(), found.distances.data());
  return found;
}

std::set<std::size_t> outside(const Filter& f, const Rows& rows) {
  std::set<std::size_t> out;
  for (std::size_t i = 0; i + 1 < rows.at.size(); ++i) {
    if (!passes(f, rows.of(i), rows.values[i])) out.insert(i);
  }
  return out;
}

const std::vector<Filter> kFilters = {
    {{1}, {}, {}, {}},                               // half
    {{}, {}, {0, 13, 15}, {}},                       // by exclusion
    {{13}, {}, {}, {}},                              // a tenth
    {{13, 14, 115}, {}, {}, {}},                     // several
    {{}, {1, 13}, {}, {}},                           // both
    {{113}, {}, {}, {}},                             // a hundredth
    {{}, {}, {}, std::pair{100.0, 500.0}},           // by value
    {{1}, {}, {113}, std::pair{-INFINITY, 1000.0}},  // by all of them
    {{0, 1}, {}, {}, {}},                            // nearly all
};

}  // namespace

TEST_CASE("a filtered search finds what brute force finds, and nothing else") {
  const Data data = clustered(3000, 40), queries = clustered(40, 40, 2);
  const Rows rows = some_rows(data.n);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 2000, layout, rows);
    Index index(folder.path / "x", small_session());
    const auto ids = ids_of(1000, 2000);
    index.insert(ids.data(), data.raw(2000), 1000, 2, rows.view(2000));
    for (const Filter& filter : kFilters) {
      const auto without = outside(filter, rows);
      for (const FilterMethod method : kMethods) {
        const Found found = ::search(index, queries, 10, 60, {filter}, method, 2);
        CHECK(recall(data, queries, found, 10, without) >= 0.95);
        for (const std::uint64_t id : found.ids) CHECK_FALSE(without.contains(id - 1000));
      }
    }
    CHECK(index.verify().faults.empty());
  }
}

TEST_CASE("where fewer than k match, all of them are given and the rest is none") {
  const Data data = clustered(1200, 24), queries = clustered(10, 24, 2);
  for (const Layout layout : kLayouts) {
    Folder folder;
    Rows rows;
    for (std::size_t i = 0; i < data.n; ++i) rows.add({i % 400 == 7 ? 8U : 9U}, 0);
    build(folder.path / "x", data, data.n, layout, rows);
    Index index(folder.path / "x", small_session());
    for (const FilterMethod method : kMethods) {
      const Found found = ::search(index, queries, 10, 20, {{{8}, {}, {}, {}}}, method);
      const Found none = ::search(index, queries, 10, 20, {{{77}, {}, {}, {}}}, method);
      for (std::size_t q = 0; q < queries.n; ++q) {
        const auto first = found.ids.begin() + static_cast<std::ptrdiff_t>(q * 10);
        CHECK(std::set<std::uint64_t>(first, first + 3) ==
              std::set<std::uint64_t>{1007, 1407, 1807});
        CHECK(found.ids[q * 10 + 3] == UINT64_MAX);
        CHECK(found.distances[q * 10 + 9] == std::numeric_limits<float>::infinity());
        CHECK(none.ids[q * 10] == UINT64_MAX);
      }
    }
    const std::uint64_t gone = 1407;
    index.remove(&gone, 1);
    CHECK(::search(index, queries, 3, 20, {{{8}, {}, {}, {}}}).ids[2] == UINT64_MAX);
  }
}

TEST_CASE("labels that lie all on one side of the data are found from the other") {
  const Data data = clustered(4000, 24), queries = clustered(60, 24, 5);
  Rows rows;
  // By the first coordinate: matching vectors are far from most queries.
  for (std::size_t i = 0; i < data.n; ++i) {
    rows.add({data.row(i)[0] > 1.9F ? 1U : 0U}, data.row(i)[0]);
  }
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, data.n, layout, rows);
    Index index(folder.path / "x", small_session());
    const Filter filters[] = {{{1}, {}, {}, {}}, {{}, {}, {}, std::pair{-1e9, -1.9}}};
    for (const Filter& filter : filters) {
      for (const FilterMethod method : kMethods) {
        const Found found = ::search(index, queries, 10, 60, {filter}, method);
        CHECK(recall(data, queries, found, 10, outside(filter, rows)) >= 0.95);
      }
    }
    CHECK(index.store().counters.exhaustive_searches > 0);  // walks given up
    CHECK(index.store().counters.filter_scans > 0);
  }
}

TEST_CASE("attributes survive, with and without a checkpoint, replacing and deleting") {
  const Data data = clustered(900, 16), queries = clustered(20, 16, 3);
  Rows rows = some_rows(data.n);
  for (const Layout layout : kLayouts) {
    for (const bool checkpointed : {false, true}) {
      Folder folder;
      build(folder.path / "x", data, 600, layout, rows);
      Rows now = rows;
      {
        Index index(folder.path / "x", small_session());
        const auto ids = ids_of(300, 600);
        index.insert(ids.data(), data.raw(600), 200, 1, rows.view(600));
        if (checkpointed) index.checkpoint();
        index.insert(ids.data() + 200, data.raw(800), 100, 1, rows.view(800));
        const std::uint64_t gone[] = {1013};
        index.remove(gone, 1);
        // 1001 becomes what row 700 is, but with label 113 and a value; 1113 loses all it had.
        const std::uint64_t again[] = {1001, 1113};
        const std::uint64_t at[] = {0, 1, 1};
        const std::uint32_t labels[] = {113};
        const double values[] = {-5, kNoValue};
        std::vector<float> vectors(data.row(1), data.row(2));
        vectors.insert(vectors.end(), data.row(113), data.row(114));
        index.insert(again, reinterpret_cast<const std::byte*>(vectors.data()), 2, 1,
                     {at, labels, values});
      }
      Index index(folder.path / "x", small_session());
      CHECK(index.stats().replayed_records > 0);
      CHECK(index.stats().attribute_bytes > 0);
      for (const Filter& filter : kFilters) {
        auto without = outside(filter, now);
        without.insert(13);
        for (const auto& [row, labels, value] :
             {std::tuple{1, std::vector<std::uint32_t>{113}, -5.0},
              std::tuple{113, std::vector<std::uint32_t>{}, kNoValue}}) {
          without.erase(static_cast<std::size_t>(row));
          if (!passes(filter, labels, value)) without.insert(static_cast<std::size_t>(row));
        }
        const std::size_t k = std::min<std::size_t>(10, data.n - without.size());
        const Found found = ::search(index, queries, k, 40, {filter});
        CHECK(recall(data, queries, found, k, without) >= 0.95);
        for (const std::uint64_t id : found.ids) CHECK_FALSE(without.contains(id - 1000));
      }
      const std::uint64_t asked[] = {1001, 1000, 1113, 1899};
      std::vector<std::uint32_t> labels;
      std::vector<std::uint64_t> counts;
      double values[4];
      index.attributes(asked, 4, labels, counts, values);
      CHECK(labels == std::vector<std::uint32_t>{113, 0, 10, 100, 1, 19, 199});
      CHECK(counts == std::vector<std::uint64_t>{1, 3, 0, 3});
      CHECK(values[0] == -5);
      CHECK(std::isnan(values[2]));
      CHECK(values[3] == 899);
    }
  }
}

TEST_CASE("one filter for all queries, or one each; else an error") {
  const Data data = clustered(1000, 16), queries = clustered(3, 16, 2);
  Folder folder;
  build(folder.path / "x", data, data.n, Layout::selective, some_rows(data.n));
  Index index(folder.path / "x", small_session());
  const std::vector<Filter> each = {kFilters[0], kFilters[2], kFilters[5]};
  const Found together = ::search(index, queries, 5, 40, each, FilterMethod::automatic, 2);
  for (std::size_t q = 0; q < 3; ++q) {
    const Data query{1, 16, {queries.row(q), queries.row(q) + 16}};
    const Found alone = ::search(index, query, 5, 40, {each[q]});
    CHECK(std::equal(alone.ids.begin(), alone.ids.end(),
                     together.ids.begin() + static_cast<std::ptrdiff_t>(q * 5)));
  }
  CHECK_THROWS_WITH_AS(::search(index, queries, 5, 40, {kFilters[0], kFilters[1]}),
                       doctest::Contains("2 filters for 3 queries"), Error);
}

TEST_CASE("both I/O backends give identical filtered results and requests") {
  const Data data = clustered(1500, 48), queries = clustered(40, 48, 9);
  for (const Layout layout : kLayouts) {
    std::vector<Found> found;
    std::vector<std::uint64_t> reads;
    for (const auto io : {shorthaul::uring::Backend::automatic, shorthaul::uring::Backend::posix}) {
      Folder folder;
      build(folder.path / "x", data, data.n, layout, some_rows(data.n));
      OpenOptions session = small_session();
      session.io = io;
      session.cache = CachePolicy::none;
      Index index(folder.path / "x", session);
      for (const Filter& filter : kFilters) {
        for (const FilterMethod method : kMethods) {
          found.push_back(::search(index, queries, 10, 50, {filter}, method));
          const Counters& c = index.store().counters;
          reads.push_back(c.search_edge_reads + 1000003 * c.search_vector_reads);
        }
      }
    }
    const std::size_t half = found.size() / 2;
    for (std::size_t i = 0; i < half; ++i) {
      CHECK(found[i].ids == found[half + i].ids);
      CHECK(found[i].distances == found[half + i].distances);
      CHECK(reads[i] == reads[half + i]);
    }
  }
}

TEST_CASE("a long walk does not hold ever more pages") {
  const Data data = clustered(4000, 32), queries = clustered(20, 32, 2);
  Rows rows;
  for (std::size_t i = 0; i < data.n; ++i) rows.add({i % 50 == 3 ? 1U : 0U}, 0);
  Folder folder;
  build(folder.path / "x", data, data.n, Layout::packed, rows);
  OpenOptions session = small_session();
  session.in_flight = 1;
  Index index(folder.path / "x", session);
  const Found found = ::search(index, queries, 10, 40, {{{1}, {}, {}, {}}}, FilterMethod::walk);
  CHECK(index.store().counters.search_expansions > 500 * queries.n);
  CHECK(index.stats().lane_bytes <= (64 + 8 + 4 + 16) * index.stats().unit_bytes * 2);
  CHECK(recall(data, queries, found, 10, outside({{1}, {}, {}, {}}, rows)) >= 0.95);
}

TEST_CASE("no search gives an id by labels it has no more") {
  const Data data = clustered(800, 16), queries = clustered(4, 16, 2);
  for (const Layout layout : kLayouts) {
    Folder folder;
    Rows rows;
    for (std::size_t i = 0; i < data.n; ++i)
      rows.add({1, 5, static_cast<std::uint32_t>(100 + i)}, 1);
    build(folder.path / "x", data, data.n, layout, rows);
    Index index(folder.path / "x", small_session());
    std::atomic<std::size_t> begun{0}, done{0}, bad{0};
    std::atomic<bool> stop{false};
    {
      std::vector<std::jthread> threads;
      for (const FilterMethod method : {FilterMethod::automatic, FilterMethod::walk}) {
        threads.emplace_back([&, method] {
          while (!stop) {
            // Row i has label 1 until it is replaced, then 2 and value 2.
            const std::size_t before = done.load();
            for (const Filter& old : {Filter{{1}, {}, {}, {}}, Filter{{}, {}, {2}, {}},
                                      Filter{{}, {}, {}, std::pair{1.0, 1.5}}}) {
              for (const auto id : ::search(index, queries, 10, 20, {old}, method).ids) {
                if (id != UINT64_MAX && id - 1000 < before) ++bad;
              }
            }
            const Found found = ::search(index, queries, 10, 20, {{{2}, {}, {}, {}}}, method);
            const std::size_t after = begun.load();
            for (const auto id : found.ids) {
              if (id != UINT64_MAX && id - 1000 >= after) ++bad;
            }
          }
        });
      }
      for (std::size_t i = 0; i < data.n; ++i) {
        begun = i + 1;
        const std::uint64_t id = 1000 + i, at[] = {0, 3};
        const std::uint32_t labels[] = {2, 5, static_cast<std::uint32_t>(100 + i)};
        const double value = 2;
        index.insert(&id, data.raw(i), 1, 1, {at, labels, &value});
        done = i + 1;
      }
      stop = true;
    }
    CHECK(bad == 0);
    CHECK(index.store().attributes.by_label().count(1) == 0);
    CHECK(index.store().attributes.by_label().count(2) == data.n);
    CHECK(index.verify().faults.empty());
  }
}
