// What the tests of compaction, snapshots and repair share.
#pragma once

#include <doctest/doctest.h>

#include <map>

#include "helpers.hpp"

namespace navis::testing {

inline const Layout kBothLayouts[] = {Layout::selective, Layout::packed};

inline OpenOptions often_flushed(Durability durability = Durability::none) {
  OpenOptions o;
  o.pending_bytes = 20'000;
  o.durability = durability;
  return o;
}

// An index of these rows of the data, with the ids that build() would give them.
inline void build_of(const std::filesystem::path& folder, const Data& data,
                     const std::vector<std::size_t>& rows, Layout layout) {
  Data some{rows.size(), data.dim, {}};
  std::vector<std::uint64_t> ids;
  for (const std::size_t row : rows) {
    some.rows.insert(some.rows.end(), data.row(row), data.row(row) + data.dim);
    ids.push_back(1000 + row);
  }
  BuildOptions how;
  how.degree = 24;
  how.search_list = 48;
  Index::build(folder, options(data, layout), {some.raw(), ids.data(), some.n}, quantizer(data, 8),
               how, {});
}

inline void remove_every(Index& index, std::size_t n, std::size_t step,
                         std::set<std::size_t>& gone) {
  std::vector<std::uint64_t> ids;
  for (std::size_t row = 0; row < n; row += step) {
    ids.push_back(1000 + row);
    gone.insert(row);
  }
  CHECK(index.remove(ids.data(), ids.size()) == ids.size());
}

inline void expect_rows(Index& index, const Data& data,
                        const std::map<std::uint64_t, std::size_t>& rows) {
  std::vector<std::uint64_t> ids = index.ids(), expected;
  std::sort(ids.begin(), ids.end());
  for (const auto& [id, row] : rows) expected.push_back(id);
  REQUIRE(ids == expected);
  std::vector<float> vectors(ids.size() * data.dim);
  index.get(ids.data(), ids.size(), reinterpret_cast<std::byte*>(vectors.data()));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const float* row = data.row(rows.at(ids[i]));
    wrong += !std::equal(row, row + data.dim, vectors.data() + i * data.dim);
  }
  CHECK(wrong == 0);
}

// The index holds these rows of the data, as build() gives ids, and no others.
inline void expect_contents(Index& index, const Data& data, const std::vector<std::size_t>& rows) {
  std::map<std::uint64_t, std::size_t> expected;
  for (const std::size_t row : rows) expected[1000 + row] = row;
  expect_rows(index, data, expected);
}

// Nothing dead is left, nothing is lost, and the files are about as small as they can be.
inline void expect_compact(Index& index, std::size_t live) {
  const VerifyReport report = index.verify();
  for (const auto& fault : report.faults) MESSAGE(fault);
  CHECK(report.faults.empty());
  CHECK(report.unreachable == 0);
  CHECK(report.entrance_unreachable == 0);
  CHECK(report.dead_edges == 0);
  const Stats stats = index.stats();
  CHECK(stats.live == live);
  CHECK(stats.deleted == 0);
  CHECK(stats.pending_lists == 0);
  const Store& s = index.store();
  const std::size_t minimal = (live + stats.per_unit - 1) / stats.per_unit;
  CHECK(stats.units_minimal == minimal);
  CHECK(stats.units <= minimal + minimal * 15 / 100 + 1);
  CHECK(s.pages.size() == stats.units * stats.unit_bytes);
  if (s.packed()) return;
  const std::size_t per_page = s.vectors_per_page();
  CHECK(s.vectors.size() == (live + per_page - 1) / per_page * s.vector_read_bytes());
}

// Share of the lists followed by searches that needed no read of their own, without a cache.
inline double sharing(const std::filesystem::path& folder, const Data& queries) {
  OpenOptions session;
  session.cache = CachePolicy::none;
  Index index(folder, session);
  search(index, queries, 10, 100);
  const Counters& c = index.store().counters;
  return static_cast<double>(c.search_shared) / static_cast<double>(c.search_expansions);
}

}  // namespace navis::testing
