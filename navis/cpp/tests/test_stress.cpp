// Everything at once, against what the writers know they have done. NAVIS_STRESS_S says for how
// many seconds (60 in ci/sanitize with FULL=1).
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "compact_testing.hpp"

using namespace navis;
using namespace navis::testing;

namespace {

constexpr std::size_t kIds = 2400, kBuilt = 800, kWriters = 2;

using Rows = std::map<std::uint64_t, std::size_t>;  // id: row of the data

// What went wrong, and how often it could have.
struct Tally {
  std::atomic<std::size_t> changes{0}, miscounted{0};
  std::atomic<std::size_t> looked_up{0}, missed{0};
  std::atomic<std::size_t> answers{0}, short_answers{0}, twice{0}, unknown{0}, unsorted{0};
  std::atomic<std::size_t> rounds{0}, failed{0}, bad_copies{0}, too_many{0};
};

double stress_seconds() {
  const char* given = std::getenv("NAVIS_STRESS_S");
  return given ? std::strtod(given, nullptr) : 2.0;
}

// Inserts, replaces and deletes the ids that are `turn` modulo kWriters; what it inserts is at once
// its own nearest.
void change(Index& index, const Data& data, std::uint64_t turn, Rows& rows,
            const std::atomic<bool>& stop, Tally& tally) {
  std::mt19937_64 random(turn + 1);
  while (!stop) {
    std::set<std::uint64_t> chosen;
    for (std::size_t i = 0, count = 1 + random() % 12; i < count; ++i) {
      chosen.insert(1000 + random() % (kIds / kWriters) * kWriters + turn);
    }
    const std::vector<std::uint64_t> ids(chosen.begin(), chosen.end());
    if (random() % 3 == 0) {
      std::size_t there = 0;
      for (const std::uint64_t id : ids) there += rows.erase(id);
      tally.miscounted += index.remove(ids.data(), ids.size()) != there;
      continue;
    }
    // Rows of this writer only, so that no two ids have the same vector for long.
    Data some{ids.size(), data.dim, {}};
    std::vector<std::uint64_t> bounds{0};
    std::vector<std::uint32_t> labels;
    std::size_t replaced = 0;
    for (const std::uint64_t id : ids) {
      const std::size_t row = random() % (data.n / kWriters) * kWriters + turn;
      replaced += rows.contains(id);
      rows[id] = row;
      some.rows.insert(some.rows.end(), data.row(row), data.row(row) + data.dim);
      labels.push_back(static_cast<std::uint32_t>(turn));
      bounds.push_back(labels.size());
    }
    const AttributeRows attributes{bounds.data(), labels.data(), nullptr};
    tally.miscounted += index.insert(ids.data(), some.raw(), ids.size(), 1, attributes) != replaced;
    ++tally.changes;
    const Found found =
        search(index, Data{1, data.dim, {some.row(0), some.row(0) + data.dim}}, 1, 40);
    tally.missed += found.distances[0] != 0;
    ++tally.looked_up;
  }
}

// Answers are whole, ascending, without duplicates, and of ids that ever were.
void ask(Index& index, const Data& queries, const std::atomic<bool>& stop, Tally& tally) {
  constexpr std::size_t k = 10;
  while (!stop) {
    const Found found = search(index, queries, k, 40);
    for (std::size_t q = 0; q < queries.n; ++q) {
      const auto first = found.ids.begin() + static_cast<std::ptrdiff_t>(q * k);
      const auto nearest = found.distances.begin() + static_cast<std::ptrdiff_t>(q * k);
      const std::set<std::uint64_t> unique(first, first + k);
      const bool whole = found.ids[q * k + k - 1] != UINT64_MAX;
      tally.short_answers += !whole;
      tally.twice += whole && unique.size() != k;
      tally.unknown += whole && (*unique.begin() < 1000 || *unique.rbegin() >= 1000 + kIds);
      tally.unsorted += !std::is_sorted(nearest, nearest + k);
      ++tally.answers;
    }
  }
}

// What a service does beside: compaction, checkpoints, copies, a new quantizer.
void keep(Index& index, const Data& data, const std::filesystem::path& copies,
          const std::atomic<bool>& stop, Tally& tally) {
  for (std::size_t round = 0; !stop; ++round) {
    try {
      index.compact([&](std::size_t, std::size_t) { return !stop; });
    } catch (const Error& error) {
      tally.failed += error.kind() != ErrorKind::closed;
    }
    index.checkpoint();
    const auto copy = copies / std::to_string(round);
    index.snapshot(copy);
    tally.bad_copies += !Index(copy, often_flushed()).verify().faults.empty();
    std::filesystem::remove_all(copy);
    if (round % 4 == 3) index.retrain(quantizer(data, 8));
    tally.too_many += index.live() > kIds || index.stats().live > kIds;
    ++tally.rounds;
  }
}

}  // namespace

TEST_CASE("stress: searches, changes, compaction, checkpoints and copies at the same time") {
  const Data data = clustered(6000, 24), queries = clustered(20, 24, 11);
  for (const Layout layout : kBothLayouts) {
    Folder folder;
    build(folder.path / "x", data, kBuilt, layout);
    std::array<Rows, kWriters> rows;
    for (std::size_t i = 0; i < kBuilt; ++i) rows[i % kWriters][1000 + i] = i;
    OpenOptions session = often_flushed(Durability::group);
    session.checkpoint_bytes = 400'000;
    session.memory_budget = 24U << 20U;
    auto index = std::make_unique<Index>(folder.path / "x", session);
    std::atomic<bool> stop{false};
    Tally tally;
    {
      std::vector<std::jthread> threads;
      for (std::size_t t = 0; t < kWriters; ++t) {
        threads.emplace_back([&, t] { change(*index, data, t, rows[t], stop, tally); });
        threads.emplace_back([&] { ask(*index, queries, stop, tally); });
      }
      threads.emplace_back([&] { keep(*index, data, folder.path, stop, tally); });
      std::this_thread::sleep_for(std::chrono::duration<double>(stress_seconds() / 2));
      stop = true;
    }
    MESSAGE(tally.changes.load() << " changes, " << tally.answers.load() << " answers, "
                                 << tally.rounds.load() << " rounds of upkeep");
    CHECK(tally.miscounted.load() == 0);
    CHECK(tally.missed * 1000 <= tally.looked_up);  // searches are approximate
    CHECK(tally.short_answers.load() == 0);
    CHECK(tally.twice.load() == 0);
    CHECK(tally.unknown.load() == 0);
    CHECK(tally.unsorted.load() == 0);
    CHECK(tally.failed.load() == 0);
    CHECK(tally.bad_copies.load() == 0);
    CHECK(tally.too_many.load() == 0);
    Rows all = rows[0];
    all.insert(rows[1].begin(), rows[1].end());
    for (int opened = 0; opened < 2; ++opened) {
      CHECK(index->verify().faults.empty());
      expect_rows(*index, data, all);
      index.reset();
      index = std::make_unique<Index>(folder.path / "x", session);
    }
  }
}
