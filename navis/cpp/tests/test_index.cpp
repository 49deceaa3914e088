#include <doctest/doctest.h>

#include <fstream>
#include <numeric>
#include <thread>

#include "helpers.hpp"

using namespace navis;
using namespace navis::testing;

namespace {

const Layout kLayouts[] = {Layout::selective, Layout::packed};

OpenOptions small_session() {
  OpenOptions o;
  o.pending_bytes = 20'000;  // flushes often
  o.durability = Durability::none;
  return o;
}

}  // namespace

TEST_CASE("an index finds what brute force finds, in both layouts, built and inserted") {
  const Data data = clustered(3000, 40), queries = clustered(50, 40, 2);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 2000, layout);
    Index index(folder.path / "x", small_session());
    CHECK(recall(data, queries, search(index, queries, 10, 60), 10, {}, 2000) >= 0.95);
    const auto ids = ids_of(1000, 2000);
    CHECK(index.insert(ids.data(), data.raw(2000), 1000, 2) == 0);
    const Found found = search(index, queries, 10, 60, 2);
    CHECK(recall(data, queries, found, 10) >= 0.95);
    CHECK(index.verify().faults.empty());
    // Distances are the true ones, ascending.
    for (std::size_t q = 0; q < queries.n; ++q) {
      for (std::size_t i = 0; i < 10; ++i) {
        const std::size_t row = found.ids[q * 10 + i] - 1000;
        CHECK(found.distances[q * 10 + i] ==
              doctest::Approx(kernels::l2(queries.row(q), data.row(row), data.dim)).epsilon(1e-5));
        if (i) CHECK(found.distances[q * 10 + i - 1] <= found.distances[q * 10 + i]);
      }
    }
  }
}

TEST_CASE("an index made from a graph keeps its edges, and refuses a graph that is none") {
  const Data data = clustered(1000, 24), queries = clustered(40, 24, 2);
  BuildOptions how;
  how.degree = 24;
  how.search_list = 48;
  const Graph graph = build_vamana(data.row(0), data.n, data.dim, how);
  const auto ids = ids_of(data.n);
  const BuildData rows{data.raw(), ids.data(), data.n};
  const NodeId entry = medoid(data.row(0), data.n, data.dim);
  for (const Layout layout : kLayouts) {
    Folder folder;
    auto make = [&](const Graph& given, NodeId from, const Progress& progress = {}) {
      std::filesystem::remove_all(folder.path / "x");
      std::filesystem::create_directories(folder.path / "x");
      Index::build_from_graph(folder.path / "x", options(data, layout), rows, given, from,
                              quantizer(data, 8), 0, progress);
    };
    std::size_t last = 0, of = 0;
    make(graph, entry, [&](std::size_t done, std::size_t total) {
      CHECK(done >= last);
      last = done;
      of = total;
      return true;
    });
    CHECK(of >= last);
    CHECK((last > 0));
    {
      Index index(folder.path / "x", small_session());
      CHECK(index.verify().faults.empty());
      const auto lists = index.neighbours(ids.data(), data.n);
      for (std::size_t i = 0; i < data.n; ++i) {
        std::vector<std::uint64_t> wanted;
        for (const NodeId to : graph.of(i)) wanted.push_back(1000 + to);
        CHECK(lists[i] == wanted);
      }
      CHECK(recall(data, queries, search(index, queries, 10, 60), 10) >= 0.95);
    }
    Graph bad = graph;
    bad.rows[5 * bad.degree] = 5;
    CHECK_THROWS_WITH_AS(make(bad, entry), doctest::Contains("node 5 has an edge to itself"),
                         Error);
    bad.rows[5 * bad.degree] = bad.rows[5 * bad.degree + 1];
    CHECK_THROWS_WITH_AS(make(bad, entry), doctest::Contains("node 5 has an edge twice"), Error);
    bad.rows[5 * bad.degree] = 1000;
    CHECK_THROWS_WITH_AS(make(bad, entry), doctest::Contains("node 5 has an edge to no node"),
                         Error);
    CHECK_THROWS_WITH_AS(make(graph, 1000), doctest::Contains("entry"), Error);
    CHECK_THROWS_WITH_AS(make(graph, entry, [](auto, auto) { return false; }),
                         doctest::Contains("stopped"), Error);
  }
}

TEST_CASE("what was inserted and not checkpointed is there again after opening") {
  const Data data = clustered(1500, 24), queries = clustered(40, 24, 3);
  for (const Layout layout : kLayouts) {
    for (const bool checkpointed : {false, true}) {
      Folder folder;
      build(folder.path / "x", data, 1000, layout);
      Found before;
      {
        Index index(folder.path / "x", small_session());
        const auto ids = ids_of(500, 1000);
        index.insert(ids.data(), data.raw(1000), 300, 1);
        if (checkpointed) index.checkpoint();
        index.insert(ids.data() + 300, data.raw(1300), 200, 1);
        const std::uint64_t gone[] = {1005, 1307, 99};
        CHECK(index.remove(gone, 3) == 2);
        before = search(index, queries, 10, 60);
      }
      Index index(folder.path / "x", small_session());
      CHECK((index.stats().replayed_records > 0));
      CHECK(index.stats().live == 1498);
      CHECK(index.contains(1499));
      CHECK_FALSE(index.contains(1005));
      CHECK(index.verify().faults.empty());
      CHECK(recall(data, queries, search(index, queries, 10, 60), 10, {5, 307}) >= 0.96);
      CHECK(recall(data, queries, before, 10, {5, 307}) >= 0.96);
    }
  }
}

TEST_CASE("a copy of the folder taken at any time opens whole: nothing needs closing") {
  const Data data = clustered(1200, 16);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 400, layout);
    OpenOptions session = small_session();
    session.durability = Durability::group;
    Index index(folder.path / "x", session);
    for (std::size_t first = 400; first < 1200; first += 100) {
      const auto ids = ids_of(100, first);
      index.insert(ids.data(), data.raw(first), 100, 1);
      if (first % 300 == 0) index.checkpoint();
      const auto copy = folder.path / ("copy" + std::to_string(first));
      std::filesystem::copy(folder.path / "x", copy, std::filesystem::copy_options::recursive);
      Index other(copy, small_session());
      CHECK(other.stats().live == first + 100);
      CHECK(other.verify().faults.empty());
      for (std::size_t i = 0; i < first + 100; i += 37) CHECK(other.contains(1000 + i));
    }
  }
}

TEST_CASE("an id inserted again is replaced") {
  const Data data = clustered(600, 16);
  Folder folder;
  build(folder.path / "x", data, 500, Layout::selective);
  Index index(folder.path / "x", small_session());
  const std::uint64_t id = 1003;
  CHECK(index.insert(&id, data.raw(550), 1, 1) == 1);
  CHECK(index.stats().live == 500);
  std::vector<float> row(16);
  index.get(&id, 1, reinterpret_cast<std::byte*>(row.data()));
  CHECK(std::equal(row.begin(), row.end(), data.row(550)));
  const Data query{1, 16, {data.row(550), data.row(550) + 16}};
  CHECK(search(index, query, 1, 40).ids[0] == 1003);
}

TEST_CASE("an empty index grows from nothing") {
  const Data data = clustered(300, 16);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 0, layout);
    Index index(folder.path / "x", small_session());
    const auto ids = ids_of(300);
    index.insert(ids.data(), data.raw(), 300, 2);
    CHECK(recall(data, clustered(20, 16, 4), search(index, clustered(20, 16, 4), 5, 60), 5) >=
          0.95);
    index.retrain(quantizer(data, 4));
    CHECK(recall(data, clustered(20, 16, 4), search(index, clustered(20, 16, 4), 5, 60), 5) >=
          0.95);
    CHECK(index.verify().faults.empty());
  }
}

TEST_CASE("fewer than k is never given while there are k") {
  const Data data = clustered(400, 16);
  Folder folder;
  build(folder.path / "x", data, 400, Layout::selective);
  Index index(folder.path / "x", small_session());
  std::vector<std::uint64_t> gone = ids_of(380);
  index.remove(gone.data(), gone.size());
  const Found found = search(index, clustered(30, 16, 5), 20, 20);
  for (const std::uint64_t id : found.ids) CHECK((id >= 1380 && id < 1400));
}

TEST_CASE("every flipped byte of a page or vector is noticed") {
  const Data data = clustered(300, 32);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 300, layout);
    const auto file = folder.path / "x" / (layout == Layout::packed ? "records.dat" : "edges.dat");
    std::mt19937 random(7);
    for (int round = 0; round < 40; ++round) {
      const auto size = std::filesystem::file_size(file);
      const auto at = static_cast<std::streamoff>(random() % size);
      auto flip = [&] {
        std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
        f.seekg(at);
        const char old = static_cast<char>(f.get());
        f.seekp(at);
        f.put(static_cast<char>(old ^ 0x10));
      };
      flip();
      {
        Index index(folder.path / "x", small_session());
        const VerifyReport report = index.verify();
        CHECK(report.faults.size() == 1);
        CHECK(report.faults[0].find(file.filename().string()) != std::string::npos);
      }
      flip();
    }
    Index index(folder.path / "x", small_session());
    CHECK(index.verify().faults.empty());
  }
}

TEST_CASE("both I/O backends give identical results and identical requests") {
  const Data data = clustered(1500, 48), queries = clustered(60, 48, 9);
  for (const Layout layout : kLayouts) {
    std::vector<Found> found;
    std::vector<std::uint64_t> reads;
    for (const auto io : {shorthaul::uring::Backend::automatic, shorthaul::uring::Backend::posix}) {
      Folder folder;
      build(folder.path / "x", data, 1000, layout);
      OpenOptions session = small_session();
      session.io = io;
      session.in_flight = 1;
      Index index(folder.path / "x", session);
      const auto ids = ids_of(500, 1000);
      index.insert(ids.data(), data.raw(1000), 500, 1);
      found.push_back(search(index, queries, 10, 50));
      const Counters& c = index.store().counters;
      reads.push_back(c.search_edge_reads + 1000003 * c.seek_edge_reads);
    }
    CHECK(found[0].ids == found[1].ids);
    CHECK(found[0].distances == found[1].distances);
    CHECK(reads[0] == reads[1]);
  }
}

TEST_CASE("a second writer is refused, a reader beside it is not") {
  const Data data = clustered(100, 8);
  Folder folder;
  build(folder.path / "x", data, 100, Layout::selective);
  Index first(folder.path / "x", small_session());
  CHECK_THROWS_WITH_AS(Index(folder.path / "x", small_session()),
                       doctest::Contains("another process"), Error);
  OpenOptions readonly;
  readonly.readonly = true;
  Index reader(folder.path / "x", readonly);
  const std::uint64_t id = 5;
  CHECK_THROWS_AS(reader.insert(&id, data.raw(), 1, 1), Error);
}

TEST_CASE("a budget too small is refused with one that is enough") {
  const Data data = clustered(2000, 16);
  Folder folder;
  build(folder.path / "x", data, 2000, Layout::selective);
  OpenOptions session = small_session();
  session.memory_budget = 100'000;
  CHECK_THROWS_WITH_AS(Index(folder.path / "x", session), doctest::Contains("too small"), Error);
}

TEST_CASE("as tables grow the cache gives way, and beyond that inserts are refused with the need") {
  const Data data = clustered(9000, 16);
  Folder folder;
  build(folder.path / "x", data, 1000, Layout::selective);
  OpenOptions session = small_session();
  session.memory_budget = 1;
  std::uint64_t needed = 0;
  try {
    Index(folder.path / "x", session);
  } catch (const Error& error) {
    const std::string said = error.what();
    needed = std::stoull(said.substr(said.find("give ") + 5)) << 20U;
  }
  session.memory_budget = needed + (1U << 20U);
  Index index(folder.path / "x", session);
  const auto taken = [](const Stats& s) {
    return s.table_bytes + s.code_bytes + s.entrance_bytes + s.cache_bytes + s.attribute_bytes;
  };
  const std::size_t capacity = index.stats().cache_capacity;
  // Two MiB and more are for buffers.
  const std::uint64_t room = session.memory_budget * 17 / 16 - (2U << 20U);
  // A hundred labels each, so that it grows fast.
  std::vector<std::uint32_t> labels(100);
  std::iota(labels.begin(), labels.end(), 0U);
  std::string refusal;
  std::size_t at = 1000;
  for (; at < 9000 && refusal.empty(); ++at) {
    const std::uint64_t id = 1000 + at, bounds[] = {0, labels.size()};
    try {
      index.insert(&id, data.raw(at), 1, 1, {bounds, labels.data(), nullptr});
    } catch (const Error& error) {
      refusal = error.what();
      CHECK(error.kind() == ErrorKind::bad_input);
    }
    CHECK(taken(index.stats()) <= room);
  }
  CHECK(refusal.find("has outgrown its memory budget") != std::string::npos);
  CHECK(index.stats().cache_capacity < capacity / 2);
  CHECK(index.stats().live == at - 1);
  CHECK(index.verify().faults.empty());
}

TEST_CASE("searching, inserting, deleting and checkpointing at the same time") {
  const Data data = clustered(2400, 24), queries = clustered(20, 24, 11);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 800, layout);
    OpenOptions session = small_session();
    session.checkpoint_bytes = 200'000;
    Index index(folder.path / "x", session);
    std::atomic<bool> stop{false};
    std::atomic<std::size_t> bad{0};
    {
      std::vector<std::jthread> threads;
      for (int t = 0; t < 2; ++t) {
        threads.emplace_back([&] { search_until(stop, index, queries, data.n, bad); });
      }
      std::vector<std::jthread> writers;
      for (std::size_t t = 0; t < 2; ++t) {
        writers.emplace_back([&, t] {
          for (std::size_t first = 800 + t * 50; first < 2400; first += 100) {
            const auto ids = ids_of(50, first);
            index.insert(ids.data(), data.raw(first), 50, 1);
            const std::uint64_t gone[] = {1000 + first / 4};
            index.remove(gone, 1);
          }
        });
      }
      writers.clear();
      stop = true;
    }
    CHECK(bad == 0);
    CHECK(index.verify().faults.empty());
    CHECK(index.stats().live == 2400 - 32);
  }
}

TEST_CASE("closing ends what other threads do at the same time, and loses nothing acknowledged") {
  const Data data = clustered(3000, 24), queries = clustered(50, 24, 11);
  for (const Layout layout : kLayouts) {
    Folder folder;
    build(folder.path / "x", data, 800, layout);
    auto index = std::make_unique<Index>(folder.path / "x", small_session());
    std::atomic<std::size_t> acknowledged{800}, closed{0}, begun{0};
    {
      std::vector<std::jthread> threads;
      const auto until_closed = [&](auto&& call) {
        threads.emplace_back([&, call] {
          try {
            for (std::size_t round = 0;; ++round) {
              call(round);
              ++begun;
            }
          } catch (const Error& error) {
            closed += error.kind() == ErrorKind::closed;
          }
        });
      };
      until_closed([&](std::size_t round) {
        const auto ids = ids_of(20, 800 + round * 20 % 2200);
        index->insert(ids.data(), data.raw(800 + round * 20 % 2200), 20, 1);
        acknowledged = std::max<std::size_t>(acknowledged, 820 + round * 20 % 2200);
      });
      until_closed([&](std::size_t) { search(*index, queries, 10, 40); });
      until_closed([&](std::size_t) { index->compact(); });
      until_closed([&](std::size_t) { index->stats(); });
      while (begun < 40) std::this_thread::yield();
      index->close();
    }
    CHECK(closed == 4);
    index = std::make_unique<Index>(folder.path / "x", small_session());
    CHECK(index->verify().faults.empty());
    CHECK(index->live() >= acknowledged);
  }
}

TEST_CASE(
    "an insert looks at half of its list at most, and at all of it where there are no codes") {
  const Data data = clustered(900, 60, 3);
  Folder folder;
  build(folder.path / "x", data, 800, Layout::selective);
  const auto ids = ids_of(100, 800);
  struct Case {
    bool rerank;
    float last;  // of the codebooks, all others zero: they tell next to nothing, or are blank
    bool half;
  };
  for (const Case& c : {Case{true, 1e-3F, true}, Case{false, 1e-3F, false}, Case{true, 0, false}}) {
    CAPTURE(c.rerank);
    CAPTURE(c.last);
    OpenOptions session = small_session();
    session.rerank = c.rerank;
    Index index(folder.path / "x", session);
    std::vector<float> codebooks(256 * 60, 0.0F);
    codebooks.back() = c.last;
    index.retrain(ProductQuantizer(60, 1, std::move(codebooks)));
    index.insert(ids.data(), data.raw(800), 100, 1);
    const std::uint64_t looked = index.store().counters.seek_vectors;
    CHECK((looked <= 100 * index.options().insert_list / 2) == c.half);
  }
}
