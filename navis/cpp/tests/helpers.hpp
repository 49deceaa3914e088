// Small indexes for the tests: clustered vectors, a quantizer of sampled rows, brute force.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../index.hpp"

namespace navis::testing {

struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "navis-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

struct Data {
  std::size_t n, dim;
  std::vector<float> rows;
  const float* row(std::size_t i) const { return rows.data() + i * dim; }
  const std::byte* raw(std::size_t i = 0) const {
    return reinterpret_cast<const std::byte*>(row(i));
  }
};

inline Data clustered(std::size_t n, std::size_t dim, std::uint64_t seed = 1) {
  std::mt19937_64 fixed(17), random(seed);  // all seeds share the clusters
  std::normal_distribution<float> normal;
  const std::size_t clusters = 20;
  std::vector<float> centres(clusters * dim);
  for (float& c : centres) c = normal(fixed);
  Data data{n, dim, std::vector<float>(n * dim)};
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t c = random() % clusters;
    for (std::size_t d = 0; d < dim; ++d) {
      data.rows[i * dim + d] = centres[c * dim + d] + normal(random);
    }
  }
  return data;
}

inline ProductQuantizer quantizer(const Data& data, std::size_t subspaces) {
  const std::size_t width = (data.dim + subspaces - 1) / subspaces;
  std::vector<float> books(subspaces * 256 * width, 0.0F);
  for (std::size_t m = 0; m < subspaces; ++m) {
    for (std::size_t c = 0; c < 256; ++c) {
      const float* row = data.row(c * 7 % data.n);
      for (std::size_t w = 0; w < width && m * width + w < data.dim; ++w) {
        books[(m * 256 + c) * width + w] = row[m * width + w];
      }
    }
  }
  return {data.dim, subspaces, std::move(books)};
}

inline IndexOptions options(const Data& data, Layout layout) {
  IndexOptions o;
  o.dim = static_cast<std::uint32_t>(data.dim);
  o.layout = layout;
  o.degree = 24;
  o.insert_list = 64;
  o.entrance_share = 0.02F;
  return o;
}

// Builds over the first `n` rows, ids 1000 + row.
inline std::vector<std::uint64_t> ids_of(std::size_t n, std::size_t first = 0) {
  std::vector<std::uint64_t> ids(n);
  std::iota(ids.begin(), ids.end(), 1000 + first);
  return ids;
}

inline void build(const std::filesystem::path& folder, const Data& data, std::size_t n,
                  Layout layout) {
  BuildOptions how;
  how.degree = 24;
  how.search_list = 48;
  const auto ids = ids_of(n);
  Index::build(folder, options(data, layout), {data.raw(), ids.data(), n}, quantizer(data, 8), how,
               {});
}

inline std::vector<std::uint64_t> brute(const Data& data, const float* query, std::size_t k,
                                        const std::set<std::size_t>& without = {},
                                        std::size_t n = SIZE_MAX) {
  std::vector<std::pair<float, std::size_t>> all;
  for (std::size_t i = 0; i < std::min(n, data.n); ++i) {
    if (!without.contains(i)) all.emplace_back(kernels::l2(query, data.row(i), data.dim), i);
  }
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(k), all.end());
  std::vector<std::uint64_t> ids;
  for (std::size_t i = 0; i < k; ++i) ids.push_back(1000 + all[i].second);
  return ids;
}

struct Found {
  std::vector<std::uint64_t> ids;
  std::vector<float> distances;
};

inline Found search(Index& index, const Data& queries, std::size_t k, std::size_t list,
                    std::size_t threads = 1) {
  SearchOptions o;
  o.k = static_cast<std::uint32_t>(k);
  o.list = static_cast<std::uint32_t>(list);
  o.threads = static_cast<std::uint32_t>(threads);
  Found found{std::vector<std::uint64_t>(queries.n * k), std::vector<float>(queries.n * k)};
  index.search(queries.row(0), queries.n, o, found.ids.data(), found.distances.data());
  return found;
}

// Searches over and over; `bad` counts answers that are not ten different ids below 1000 + known.
inline void search_until(const std::atomic<bool>& stop, Index& index, const Data& queries,
                         std::size_t known, std::atomic<std::size_t>& bad) {
  while (!stop) {
    const Found found = search(index, queries, 10, 40);
    for (std::size_t q = 0; q < queries.n; ++q) {
      const auto first = found.ids.begin() + static_cast<std::ptrdiff_t>(q * 10);
      const std::set<std::uint64_t> unique(first, first + 10);
      if (unique.size() != 10 || *unique.rbegin() >= 1000 + known) ++bad;
    }
  }
}

inline double recall(const Data& data, const Data& queries, const Found& found, std::size_t k,
                     const std::set<std::size_t>& without = {}, std::size_t n = SIZE_MAX) {
  std::size_t hits = 0;
  for (std::size_t q = 0; q < queries.n; ++q) {
    const auto truth = brute(data, queries.row(q), k, without, n);
    for (std::size_t i = 0; i < k; ++i) {
      hits += std::count(truth.begin(), truth.end(), found.ids[q * k + i]);
    }
  }
  return static_cast<double>(hits) / static_cast<double>(queries.n * k);
}

}  // namespace navis::testing
