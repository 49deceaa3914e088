#include "packing.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace navis {
namespace {

using Neighbours = std::function<std::span<const NodeId>(std::size_t)>;

// Who points at whom, all lists one after the other.
struct Incoming {
  std::vector<std::size_t> begins;
  std::vector<NodeId> sources;

  Incoming(std::size_t n, const Neighbours& neighbours) : begins(n + 1, 0) {
    for_each_edge(n, neighbours, [&](std::size_t, NodeId to) { ++begins[to + 1]; });
    for (std::size_t i = 0; i < n; ++i) begins[i + 1] += begins[i];
    sources.resize(begins[n]);
    std::vector<std::size_t> next(begins.begin(), begins.end() - 1);
    for_each_edge(n, neighbours, [&](std::size_t from, NodeId to) {
      sources[next[to]++] = static_cast<NodeId>(from);
    });
  }

  std::span<const NodeId> of(std::size_t i) const {
    return {sources.data() + begins[i], begins[i + 1] - begins[i]};
  }

 private:
  template <class Use>
  static void for_each_edge(std::size_t n, const Neighbours& neighbours, Use&& use) {
    for (std::size_t i = 0; i < n; ++i) {
      for (NodeId to : neighbours(i)) {
        if (to < n && to != i) use(i, to);
      }
    }
  }
};

// From `start`, then from the lowest member not met, and so on.
std::vector<NodeId> breadth_first(std::size_t n, std::size_t start, const Neighbours& neighbours) {
  std::vector<NodeId> order;
  order.reserve(n);
  std::vector<char> met(n, 0);
  const auto meet = [&](std::size_t i) {
    if (met[i]) return;
    met[i] = 1;
    order.push_back(static_cast<NodeId>(i));
  };
  if (start < n) meet(start);
  for (std::size_t next = 0, lowest = 0; next < n; ++next) {
    if (next == order.size()) {
      while (met[lowest]) ++lowest;
      meet(lowest);
    }
    for (NodeId to : neighbours(order[next])) {
      if (to < n) meet(to);
    }
  }
  return order;
}

}  // namespace

std::vector<std::size_t> pack_pages(
    std::size_t n, std::size_t per_page, std::size_t start,
    const std::function<std::span<const NodeId>(std::size_t)>& neighbours) {
  if (per_page == 0) throw Error(ErrorKind::bad_input, "packing: pages of no member");
  std::vector<std::size_t> order;
  order.reserve(n);
  const Incoming incoming(n, neighbours);
  const std::vector<NodeId> seeds = breadth_first(n, start, neighbours);
  std::vector<char> placed(n, 0);
  std::vector<std::uint32_t> edges(n, 0);  // of an unplaced member to and from the open page
  std::vector<NodeId> met;                 // those with edges
  std::size_t seed = 0;
  while (order.size() < n) {
    if (order.size() % per_page == 0) {
      for (NodeId i : met) edges[i] = 0;
      met.clear();
    }
    std::size_t best = n;
    for (NodeId i : met) {
      if (!placed[i] && (best == n || edges[best] < edges[i])) best = i;
    }
    if (best == n) {
      while (placed[seeds[seed]]) ++seed;
      best = seeds[seed];
    }
    placed[best] = 1;
    order.push_back(best);
    const auto count = [&](std::span<const NodeId> list) {
      for (NodeId i : list) {
        if (i >= n || placed[i]) continue;
        if (edges[i]++ == 0) met.push_back(i);
      }
    };
    count(neighbours(best));
    count(incoming.of(best));
  }
  return order;
}

double page_sharing(const std::vector<std::size_t>& order, std::size_t per_page,
                    std::span<const NodeId> expanded) {
  if (expanded.empty()) return 0;
  constexpr std::size_t kNowhere = std::numeric_limits<std::size_t>::max();
  std::vector<std::size_t> page_of(order.size(), kNowhere);
  for (std::size_t place = 0; place < order.size(); ++place) {
    page_of[order[place]] = place / per_page;
  }
  std::vector<std::size_t> pages;
  for (NodeId i : expanded) pages.push_back(page_of[i]);
  std::sort(pages.begin(), pages.end());
  const auto distinct = std::unique(pages.begin(), pages.end()) - pages.begin();
  return 1.0 - static_cast<double>(distinct) / static_cast<double>(expanded.size());
}

}  // namespace navis
