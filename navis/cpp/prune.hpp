// Which neighbours a node keeps. `distance(i, j)` is the squared distance between entries i and j
// of the caller's list of candidates, always a true pairwise distance between two distinct vectors
// (one public peer compares a scratch buffer with itself, and all its occlusions are zero).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

#include "types.hpp"

namespace navis {

struct Neighbour {
  NodeId id;
  float distance;  // squared distance to the node whose list is made

  friend bool operator<(const Neighbour& a, const Neighbour& b) {
    return a.distance < b.distance || (a.distance == b.distance && a.id < b.id);
  }
};

// RobustPrune of Vamana (DiskANN, algorithm 2) on squared distances: takes candidates nearest
// first and drops those alpha-occluded by a nearer one taken: alpha^2 * d(taken, c) <= d(node, c).
// In five rounds, the first with 1 in place of alpha^2 and each next nearer to it by its fourth
// root: the least occluded come first. In one round the nearest, which alpha spares, would fill the
// list and leave no room for a way out of the neighbourhood. `sorted` is ascending and without
// duplicates; the result are positions in it, ascending, at most `degree`. With `saturate` the list
// is filled up with the nearest of those dropped.
template <class PairDistance>
std::vector<std::size_t> robust_prune(const std::vector<Neighbour>& sorted, std::size_t degree,
                                      float alpha, bool saturate, PairDistance&& distance) {
  std::vector<std::size_t> kept;
  std::vector<char> taken(sorted.size(), 0);
  // A candidate is compared with those taken only until one occludes it, and never twice with one.
  std::vector<std::size_t> compared(sorted.size(), 0);
  std::vector<float> closest(sorted.size(), std::numeric_limits<float>::infinity());
  const float root = std::sqrt(alpha);
  for (const float bar : {1.0F, root, alpha, alpha * root, alpha * alpha}) {
    for (std::size_t c = 0; c < sorted.size() && kept.size() < degree; ++c) {
      if (taken[c]) continue;
      const auto occluded = [&] { return bar * closest[c] <= sorted[c].distance; };
      while (!occluded() && compared[c] < kept.size()) {
        const std::size_t k = kept[compared[c]++];
        if (k < c) closest[c] = std::min(closest[c], static_cast<float>(distance(k, c)));
      }
      if (occluded()) continue;
      kept.push_back(c);
      taken[c] = 1;
    }
  }
  if (saturate) {
    for (std::size_t c = 0; c < sorted.size() && kept.size() < degree; ++c) {
      if (!taken[c]) kept.push_back(c);
    }
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

// Delta prune (OdinANN): a full list gains a newcomer and loses one entry. `list` holds the old
// entries with their distances to the node; `to_new(i)` is the squared distance of entry i to the
// newcomer, `new_distance` that of the newcomer to the node. The victim is, in this order: the
// farthest entry alpha-occluded by the newcomer; the farthest entry alpha-occluded by another,
// nearer entry; the farthest entry. Never the newcomer, so that an inserted node keeps its way in.
// The result is the victim's position in `list`, which is not empty.
template <class NewDistance, class PairDistance>
std::size_t delta_prune_victim(const std::vector<Neighbour>& list, NewDistance&& to_new,
                               float new_distance, float alpha, PairDistance&& distance) {
  const float alpha2 = alpha * alpha;
  // Farthest first, so that the first one found is the victim and the rest need no distances.
  std::vector<std::size_t> order(list.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return list[b] < list[a]; });
  for (const std::size_t i : order) {
    if (new_distance < list[i].distance && alpha2 * to_new(i) <= list[i].distance) return i;
  }
  for (std::size_t far = 0; far + 1 < order.size(); ++far) {
    const std::size_t i = order[far];
    for (std::size_t near = order.size(); --near > far;) {  // nearest first: it occludes most
      if (alpha2 * distance(order[near], i) <= list[i].distance) return i;
    }
  }
  return order.front();
}

}  // namespace navis
