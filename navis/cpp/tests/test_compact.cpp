// Compaction: what is deleted goes, its places are used again, and nothing else changes, whenever
// the process dies.
#include <doctest/doctest.h>

#include <thread>

#include "compact_testing.hpp"

using namespace navis;
using namespace navis::testing;

TEST_CASE("compaction forgets the deleted, gives their space back and keeps all else") {
  const Data data = clustered(3000, 40), queries = clustered(60, 40, 2);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 2400, layout);
    const auto rebuilt = [&] {
      std::vector<std::size_t> rows;
      for (std::size_t i = 0; i < 3000; ++i) {
        if (i % 5 != 0) rows.push_back(i);
      }
      return rows;
    }();
    Index index(folder.path / "x", often_flushed());
    const auto more = ids_of(600, 2400);
    index.insert(more.data(), data.raw(2400), 600, 1);
    std::set<std::size_t> gone;
    remove_every(index, 3000, 5, gone);
    index.checkpoint();
    const std::uint64_t before = index.stats().files_bytes;

    index.compact();
    expect_compact(index, 2400);
    expect_contents(index, data, rebuilt);
    const Stats stats = index.stats();
    CHECK(stats.unused == 600);
    CHECK(stats.files_bytes < before * 85 / 100);
    const Found found = search(index, queries, 10, 60);
    for (const std::uint64_t id : found.ids) CHECK_FALSE(gone.contains(id - 1000));

    // As good as if it had been built of what is left.
    Folder fresh;
    build_of(fresh.path / "x", data, rebuilt, layout);
    Index other(fresh.path / "x", often_flushed());
    const double here = recall(data, queries, found, 10, gone);
    CHECK(here >= recall(data, queries, search(other, queries, 10, 60), 10, gone) - 0.01);
    index.compact();  // a second time there is nothing to do
    expect_compact(index, 2400);
    index.close();
    Index again(folder.path / "x", often_flushed());
    expect_compact(again, 2400);
    expect_contents(again, data, rebuilt);
    CHECK(recall(data, queries, search(again, queries, 10, 60), 10, gone) == here);
  }
}

TEST_CASE("freed nodes and their places are used again") {
  const Data data = clustered(2000, 24), queries = clustered(40, 24, 3);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 1000, layout);
    Index index(folder.path / "x", often_flushed());
    for (std::size_t round = 0; round < 3; ++round) {
      // The same ids come back with other vectors.
      std::set<std::size_t> gone;
      remove_every(index, 1000, 4, gone);
      index.compact();
      CHECK(index.stats().unused == 250);
      for (const std::size_t row : gone) {
        const std::uint64_t id = 1000 + row;
        index.insert(&id, data.raw(1000 + (row + round) % 1000), 1, 1);
      }
      CHECK(index.stats().unused == 0);
      CHECK(index.stats().rows == 1000);
      CHECK(index.verify().faults.empty());
      if (round == 1) {
        index.close();
        Index other(folder.path / "x", often_flushed());
        CHECK(other.verify().faults.empty());
        CHECK(other.stats().live == 1000);
        return;
      }
    }
  }
}

TEST_CASE("what was freed and taken again is right after any death, logged or checkpointed") {
  const Data data = clustered(1200, 16);
  for (const Layout layout : kBothLayouts) {
    for (const bool checkpointed : {false, true}) {
      Folder folder;
      build(folder.path / "x", data, 600, layout);
      std::map<std::uint64_t, std::size_t> rows;  // id: row of data
      for (std::size_t i = 0; i < 600; ++i) rows[1000 + i] = i;
      Index index(folder.path / "x", often_flushed(Durability::group));
      std::set<std::size_t> gone;
      remove_every(index, 600, 3, gone);
      for (const std::size_t row : gone) rows.erase(1000 + row);
      index.compact();
      for (std::size_t i = 0; i < 300; ++i) {  // into freed nodes, and beyond
        const std::uint64_t id = 5000 + i;
        index.insert(&id, data.raw(600 + i), 1, 1);
        rows[id] = 600 + i;
        if (checkpointed && i % 100 == 50) index.checkpoint();
        if (i % 60 != 0) continue;
        const auto copy = folder.path / ("copy" + std::to_string(i));
        std::filesystem::copy(folder.path / "x", copy, std::filesystem::copy_options::recursive);
        Index other(copy, often_flushed());
        CHECK(other.verify().faults.empty());
        expect_rows(other, data, rows);
      }
    }
  }
}

TEST_CASE("the process may die at any point of a compaction") {
  const Data data = clustered(1500, 24), queries = clustered(30, 24, 5);
  for (const Layout layout : kBothLayouts) {
    for (const Durability durability : {Durability::group, Durability::none}) {
      Folder folder;
      build(folder.path / "x", data, 1200, layout);
      auto index = std::make_unique<Index>(folder.path / "x", often_flushed(durability));
      const auto more = ids_of(300, 1200);
      index->insert(more.data(), data.raw(1200), 300, 1);
      std::set<std::size_t> gone;
      remove_every(*index, 1500, 4, gone);
      index->flush();
      std::vector<std::size_t> left;
      for (std::size_t i = 0; i < 1500; ++i) {
        if (!gone.contains(i)) left.push_back(i);
      }
      std::size_t calls = 0;
      std::vector<std::filesystem::path> copies;
      index->compact(
          [&](std::size_t done, std::size_t total) {
            CHECK(done <= total);
            if (calls++ % 2 == 0) {
              copies.push_back(folder.path / ("copy" + std::to_string(calls)));
              std::filesystem::copy(folder.path / "x", copies.back(),
                                    std::filesystem::copy_options::recursive);
            }
            return true;
          },
          100);
      CHECK(copies.size() >= 5);
      for (const auto& copy : copies) {
        {
          Index other(copy, often_flushed());
          const VerifyReport report = other.verify();
          CHECK(report.faults.empty());
          CHECK(report.unreachable == 0);
          expect_contents(other, data, left);
          // Whoever comes next finds everything in order.
          const std::uint64_t id = 9000;
          other.insert(&id, data.raw(3), 1, 1);
          other.compact();
          CHECK(other.verify().faults.empty());
          CHECK(other.stats().deleted == 0);
          CHECK(recall(data, queries, search(other, queries, 10, 60), 10, gone) >= 0.9);
        }
        std::filesystem::remove_all(copy);
      }
    }
  }
}

TEST_CASE("a compaction that was stopped leaves a whole index, and the next one ends it") {
  const Data data = clustered(1200, 24);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 1200, layout);
    Index index(folder.path / "x", often_flushed());
    std::set<std::size_t> gone;
    remove_every(index, 1200, 3, gone);
    std::vector<std::size_t> left;
    for (std::size_t i = 0; i < 1200; ++i) {
      if (!gone.contains(i)) left.push_back(i);
    }
    for (std::size_t stop = 1; stop < 8; stop += 2) {
      std::size_t calls = 0;
      CHECK_THROWS_WITH_AS(index.compact([&](auto, auto) { return ++calls < stop; }, 100),
                           doctest::Contains("stopped"), Error);
      CHECK(index.verify().faults.empty());
    }
    index.compact();
    expect_compact(index, 800);
    expect_contents(index, data, left);
  }
}

TEST_CASE("searching, inserting, deleting and compacting at the same time") {
  const Data data = clustered(2400, 24), queries = clustered(20, 24, 11);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 1000, layout);
    OpenOptions session = often_flushed();
    session.checkpoint_bytes = 200'000;
    Index index(folder.path / "x", session);
    std::atomic<bool> stop{false};
    std::atomic<std::size_t> bad{0}, compacted{0};
    {
      std::vector<std::jthread> others, writers;
      others.emplace_back([&] { search_until(stop, index, queries, data.n, bad); });
      others.emplace_back([&] {
        while (!stop) {
          index.compact({}, 150);
          ++compacted;
        }
      });
      for (std::size_t t = 0; t < 2; ++t) {
        writers.emplace_back([&, t] {
          for (std::size_t first = 1000 + t * 20; first < 2400; first += 40) {
            const auto ids = ids_of(20, first);
            index.insert(ids.data(), data.raw(first), 20, 1);
            std::vector<std::uint64_t> gone;
            for (std::size_t i = 0; i < 10; ++i) gone.push_back(1000 + (first - 1000) / 2 + i);
            index.remove(gone.data(), gone.size());
          }
        });
      }
      writers.clear();
      stop = true;
    }
    CHECK(bad == 0);
    CHECK(compacted > 0);
    CHECK(index.verify().faults.empty());
    CHECK(index.stats().live == 2400 - 700);
    std::vector<std::size_t> left;
    for (std::size_t i = 700; i < 2400; ++i) left.push_back(i);
    expect_contents(index, data, left);
    index.compact();
    expect_compact(index, 1700);
    index.close();
    Index again(folder.path / "x", often_flushed());
    expect_compact(again, 1700);
    expect_contents(again, data, left);
  }
}

TEST_CASE("when all is deleted nothing is left, and the index grows again") {
  const Data data = clustered(400, 16);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 300, layout);
    {
      Index index(folder.path / "x", often_flushed());
      std::set<std::size_t> gone;
      remove_every(index, 300, 1, gone);
      const std::uint64_t id = 7000;  // joined to a dead medoid only
      index.insert(&id, data.raw(300), 1, 1);
      index.compact();
      expect_compact(index, 1);
      CHECK(search(index, {1, 16, {data.row(300), data.row(300) + 16}}, 1, 10).ids[0] == 7000);
      index.remove(&id, 1);
      index.compact();
      expect_compact(index, 0);
      CHECK(index.stats().units == 0);
    }
    Index index(folder.path / "x", often_flushed());
    CHECK(index.stats().rows == 0);
    const auto ids = ids_of(400);
    index.insert(ids.data(), data.raw(), 400, 2);
    CHECK(index.verify().faults.empty());
    CHECK(recall(data, clustered(20, 16, 4), search(index, clustered(20, 16, 4), 5, 60), 5) >=
          0.95);
  }
}

TEST_CASE("a compacted index shares pages nearly as a fresh one does, in one window or in many") {
  const Data data = clustered(6000, 32), queries = clustered(100, 32, 8);
  std::vector<std::size_t> left;
  std::set<std::size_t> gone;
  for (std::size_t i = 0; i < 6000; ++i) {
    if (i % 5 == 2) {
      gone.insert(i);
    } else {
      left.push_back(i);
    }
  }
  Folder folder;
  build_of(folder.path / "fresh", data, left, Layout::selective);
  const double fresh = sharing(folder.path / "fresh", queries);
  build(folder.path / "x", data, 4000, Layout::selective);
  {
    Index index(folder.path / "x", often_flushed());
    const auto more = ids_of(2000, 4000);
    index.insert(more.data(), data.raw(4000), 2000, 1);
    for (const std::size_t row : gone) {
      const std::uint64_t id = 1000 + row;
      index.remove(&id, 1);
    }
    index.checkpoint();
  }
  const double worn = sharing(folder.path / "x", queries);
  for (const std::size_t window : {1000, 0}) {
    {
      Index index(folder.path / "x", often_flushed());
      index.compact({}, window);
      expect_compact(index, left.size());
    }
    const double now = sharing(folder.path / "x", queries);
    MESSAGE("shared: fresh ", fresh, ", worn ", worn, ", window ", window, " ", now);
    CHECK(now >= fresh - 0.05);
  }
}

TEST_CASE("two compactions at once are refused, and so is one of a readonly index") {
  const Data data = clustered(300, 16);
  Folder folder;
  build(folder.path / "x", data, 300, Layout::selective);
  {
    Index index(folder.path / "x", often_flushed());
    index.compact([&](auto, auto) {
      std::jthread([&] {
        CHECK_THROWS_WITH_AS(index.compact(), doctest::Contains("already"), Error);
      }).join();
      return true;
    });
  }
  OpenOptions readonly;
  readonly.readonly = true;
  Index reader(folder.path / "x", readonly);
  CHECK_THROWS_AS(reader.compact(), Error);
  CHECK_THROWS_AS(reader.repair(), Error);
  CHECK_THROWS_AS(reader.snapshot(folder.path / "y"), Error);
}
