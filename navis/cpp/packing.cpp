#include "packing.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels.hpp"

namespace navis {
namespace {

using Neighbours = std::function<std::span<const NodeId>(std::size_t)>;

// What an edge counts by its place in the list, which begins with the nearest: those are the ones
// expanded together. Against counting all alike it gave 2 to 6 points of page sharing.
std::uint8_t weight_of(std::size_t place) {
  return static_cast<std::uint8_t>(std::max<std::size_t>(1, 1020 / (4 + place)));
}

struct Edge {
  NodeId other;
  std::uint8_t weight;
};

// Who points at whom, all lists one after the other.
class Incoming {
 public:
  Incoming(std::size_t n, const Neighbours& neighbours) : begins_(n + 1, 0) {
    for_each_edge(n, neighbours, [&](NodeId to, Edge) { ++begins_[to + 1]; });
    for (std::size_t i = 0; i < n; ++i) begins_[i + 1] += begins_[i];
    sources_.resize(begins_[n]);
    weights_.resize(begins_[n]);
    std::vector<std::size_t> next(begins_.begin(), begins_.end() - 1);
    for_each_edge(n, neighbours, [&](NodeId to, Edge edge) {
      sources_[next[to]] = edge.other;
      weights_[next[to]++] = edge.weight;
    });
  }

  template <class Use>
  void for_each(std::size_t i, Use&& use) const {
    for (std::size_t at = begins_[i]; at < begins_[i + 1]; ++at) use(sources_[at], weights_[at]);
  }

 private:
  template <class Use>
  static void for_each_edge(std::size_t n, const Neighbours& neighbours, Use&& use) {
    for (std::size_t i = 0; i < n; ++i) {
      const std::span<const NodeId> list = neighbours(i);
      for (std::size_t place = 0; place < list.size(); ++place) {
        if (list[place] >= n || list[place] == i) continue;
        use(list[place], Edge{static_cast<NodeId>(i), weight_of(place)});
      }
    }
  }

  std::vector<std::size_t> begins_;
  std::vector<NodeId> sources_;  // apart from the weights, which would cost three bytes of padding
  std::vector<std::uint8_t> weights_;
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
  std::vector<std::uint32_t> edges(n, 0);  // weight of those to and from the open page
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
    const auto count = [&](NodeId i, std::uint32_t weight) {
      if (placed[i]) return;
      if (edges[i] == 0) met.push_back(i);
      edges[i] += weight;
    };
    const std::span<const NodeId> list = neighbours(best);
    for (std::size_t place = 0; place < list.size(); ++place) {
      if (list[place] < n) count(list[place], weight_of(place));
    }
    incoming.for_each(best, count);
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

void group_nearest(std::vector<std::size_t>& order, std::size_t per_unit, std::size_t per_page,
                   std::size_t dim, const std::function<void(std::size_t, float*)>& vector) {
  if (per_page < 2) return;
  // Those of the run before that are on the page which is still open lie in front.
  std::vector<float> vectors((per_page + per_unit) * dim), distances;
  std::vector<std::size_t> left, chosen, nearest, sorted;
  std::size_t open = 0;
  for (std::size_t first = 0; first < order.size(); first += per_unit) {
    const std::size_t count = std::min(per_unit, order.size() - first), all = open + count;
    for (std::size_t i = 0; i < count; ++i) {
      vector(order[first + i], vectors.data() + (open + i) * dim);
    }
    distances.assign(all * all, 0);
    for (std::size_t a = 0; a < all; ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        distances[a * all + b] = distances[b * all + a] =
            kernels::l2(vectors.data() + a * dim, vectors.data() + b * dim, dim);
      }
    }
    left.clear();
    sorted.clear();
    for (std::size_t i = open; i < all; ++i) left.push_back(i);
    // The `more` nearest of those left to `to`, itself not among them, and their distances' sum.
    auto around = [&](std::size_t to, std::size_t more) {
      nearest.clear();
      for (const std::size_t i : left) {
        if (i != to) nearest.push_back(i);
      }
      more = std::min(more, nearest.size());
      std::partial_sort(nearest.begin(), nearest.begin() + static_cast<std::ptrdiff_t>(more),
                        nearest.end(), [&](std::size_t a, std::size_t b) {
                          return distances[to * all + a] < distances[to * all + b];
                        });
      nearest.resize(more);
      float sum = 0;
      for (const std::size_t i : nearest) sum += distances[to * all + i];
      return sum;
    };
    if (open > 0) {
      around(0, per_page - open);
      chosen = nearest;
    } else {
      chosen.clear();
    }
    for (;;) {
      sorted.insert(sorted.end(), chosen.begin(), chosen.end());
      std::erase_if(left, [&](std::size_t i) {
        return std::find(chosen.begin(), chosen.end(), i) != chosen.end();
      });
      if (left.empty()) break;
      chosen.assign(1, left.front());  // of vectors too far apart for a float
      float best = std::numeric_limits<float>::infinity();
      for (const std::size_t seed : left) {
        const float sum = around(seed, per_page - 1);
        if (sum >= best) continue;
        best = sum;
        chosen = nearest;
        chosen.insert(chosen.begin(), seed);
      }
    }
    std::vector<std::size_t> run(count);
    for (std::size_t i = 0; i < count; ++i) run[i] = order[first + sorted[i] - open];
    std::copy(run.begin(), run.end(), order.begin() + static_cast<std::ptrdiff_t>(first));
    const std::size_t opened = (first + count) % per_page;
    std::vector<float> last;
    for (std::size_t i = all - opened; i < all; ++i) {
      const std::size_t at = i < open ? i : sorted[i - open];
      last.insert(last.end(), vectors.begin() + static_cast<std::ptrdiff_t>(at * dim),
                  vectors.begin() + static_cast<std::ptrdiff_t>((at + 1) * dim));
    }
    std::copy(last.begin(), last.end(), vectors.begin());
    open = opened;
  }
}

}  // namespace navis
