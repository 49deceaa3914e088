// Copies of an index in use, and what becomes of damage.
#include <doctest/doctest.h>

#include <fstream>
#include <thread>

#include "compact_testing.hpp"

using namespace navis;
using namespace navis::testing;

namespace {

void damage(const std::filesystem::path& file, std::uint64_t at) {
  std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
  f.seekg(static_cast<std::streamoff>(at));
  const char old = static_cast<char>(f.get());
  f.seekp(static_cast<std::streamoff>(at));
  f.put(static_cast<char>(old ^ 0x10));
}

}  // namespace

TEST_CASE("a snapshot is the index at one moment, and of a failed one nothing is left") {
  const Data data = clustered(900, 24);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 600, layout);
    Index index(folder.path / "x", often_flushed());
    const auto ids = ids_of(300, 600);
    index.insert(ids.data(), data.raw(600), 200, 1);
    std::set<std::size_t> gone;
    remove_every(index, 800, 4, gone);
    index.snapshot(folder.path / "copy");
    std::vector<std::size_t> then;
    for (std::size_t i = 0; i < 800; ++i) {
      if (!gone.contains(i)) then.push_back(i);
    }
    // What comes after it is not in it.
    index.insert(ids.data() + 200, data.raw(800), 100, 1);
    index.compact();
    {
      Index copy(folder.path / "copy", often_flushed());
      CHECK(copy.verify().faults.empty());
      expect_contents(copy, data, then);
      copy.compact();
      expect_compact(copy, then.size());
    }
    CHECK_THROWS_WITH_AS(index.snapshot(folder.path / "copy"), doctest::Contains("exists"), Error);
    CHECK_THROWS_WITH_AS(index.snapshot(folder.path / "none" / "y"),
                         doctest::Contains("no such folder"), Error);
    CHECK_THROWS_WITH_AS(index.snapshot(folder.path / "y", [](auto, auto) { return false; }),
                         doctest::Contains("stopped"), Error);
    std::size_t entries = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path)) {
      ++entries;
    }
    CHECK(entries == 2);  // the index and its copy
    CHECK(index.verify().faults.empty());
  }
}

TEST_CASE("snapshots under load hold everything acknowledged before, and each vector is its own") {
  const Data data = clustered(2400, 24);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 400, layout);
    OpenOptions session = often_flushed();
    session.pending_bytes = 5'000;
    session.checkpoint_bytes = 50'000;
    Index index(folder.path / "x", session);
    std::atomic<std::size_t> inserted{400}, deleted{0};
    std::atomic<bool> stop{false};
    struct Taken {
      std::filesystem::path path;
      std::size_t inserted, deleted;  // at least
    };
    std::vector<Taken> copies;
    {
      std::jthread writer([&] {
        for (std::size_t first = 400; first < 2400 && !stop; first += 20) {
          const auto ids = ids_of(20, first);
          index.insert(ids.data(), data.raw(first), 20, 2);
          inserted = first + 20;
          const auto gone = ids_of(5, deleted);
          index.remove(gone.data(), 5);
          deleted += 5;
        }
        stop = true;
      });
      std::jthread compactor([&] {
        while (!stop) index.compact({}, 100);
      });
      while (!stop && copies.size() < 12) {
        copies.push_back(
            {folder.path / ("copy" + std::to_string(copies.size())), inserted, deleted});
        index.snapshot(copies.back().path);
      }
      stop = true;
    }
    CHECK(copies.size() >= 2);
    for (const Taken& taken : copies) {
      Index copy(taken.path, often_flushed());
      const VerifyReport report = copy.verify();
      for (const auto& fault : report.faults) MESSAGE(fault);
      CHECK(report.faults.empty());
      std::map<std::uint64_t, std::size_t> rows;
      for (const std::uint64_t id : copy.ids()) rows[id] = id - 1000;
      expect_rows(copy, data, rows);
      for (std::size_t i = taken.deleted + 5; i < taken.inserted; ++i) {
        if (!rows.contains(1000 + i))
          CHECK(copy.stats().live + 5 >= taken.inserted - taken.deleted);
      }
      for (std::size_t i = 0; i < taken.deleted; ++i) CHECK_FALSE(rows.contains(1000 + i));
    }
  }
}

TEST_CASE("lists on damaged pages are made anew, vectors on damaged pages are named") {
  const Data data = clustered(1500, 32), queries = clustered(40, 32, 4);
  for (const CachePolicy cache : {CachePolicy::none, CachePolicy::lfu}) {
    Folder folder;
    build(folder.path / "x", data, 1500, Layout::selective);
    OpenOptions session = often_flushed();
    session.cache = cache;
    for (const std::uint64_t page : {3, 7, 20}) {
      damage(folder.path / "x" / "edges.dat", page * kPageBytes + 900);
    }
    damage(folder.path / "x" / "vectors.dat", 5 * kPageBytes + 20);
    Index index(folder.path / "x", session);
    const VerifyReport before = index.verify();
    CHECK(before.faults.size() == 4);
    const RepairReport repaired = index.repair();
    CHECK(repaired.lists > 80);
    REQUIRE(repaired.lost.size() == 1);
    CHECK(index.verify().faults.size() == 1);  // the vector
    CHECK(index.remove(repaired.lost.data(), 1) == 1);
    CHECK(index.verify().faults.empty());
    const std::set<std::size_t> gone{repaired.lost[0] - 1000};
    CHECK(recall(data, queries, search(index, queries, 10, 60), 10, gone) >= 0.95);
    index.compact();
    expect_compact(index, 1499);
    index.close();
    Index again(folder.path / "x", session);
    expect_compact(again, 1499);
    CHECK(again.repair().lists == 0);
  }
}

TEST_CASE("packed records that are damaged are named, and gone after deleting and compacting") {
  const Data data = clustered(800, 32);
  Folder folder;
  build(folder.path / "x", data, 800, Layout::packed);
  damage(folder.path / "x" / "records.dat", 9 * kPageBytes + 500);
  Index index(folder.path / "x", often_flushed());
  CHECK(index.verify().faults.size() >= 1);
  const RepairReport report = index.repair();
  CHECK(report.lists == 0);
  CHECK(report.lost.size() == index.store().format.per_unit());
  CHECK(index.remove(report.lost.data(), report.lost.size()) == report.lost.size());
  index.compact();
  expect_compact(index, 800 - report.lost.size());
}

TEST_CASE("verify finds who is out of reach, and compaction makes a way to them") {
  const Data data = clustered(1000, 24);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, 1000, layout);
    Index index(folder.path / "x", often_flushed());
    // Most are deleted at once: what joined the rest goes with them.
    std::vector<std::uint64_t> gone;
    std::set<std::size_t> rows;
    for (std::size_t i = 0; i < 1000; ++i) {
      if (i % 20 == 0) continue;
      gone.push_back(1000 + i);
      rows.insert(i);
    }
    index.remove(gone.data(), gone.size());
    index.compact();
    expect_compact(index, 50);
    const Data queries = clustered(20, 24, 6);
    CHECK(recall(data, queries, search(index, queries, 10, 50), 10, rows) >= 0.99);
    CHECK(index.store().counters.exhaustive_searches == 0);
  }
}
