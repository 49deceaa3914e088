// Which lists share a page. Neighbours that are expanded one after the other should be read
// together.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "types.hpp"

namespace navis {

// Gives the members 0..n-1 an order such that each run of `per_page` consecutive ones is one page:
// a page is started with the next unplaced member in breadth-first order from `start`, then
// repeatedly takes the unplaced member with the most edges to and from those already in the page
// (ties: the one met first). An edge counts the more the nearer it is to the front of its list: the
// one at place r, from 0, counts floor(1020 / (4 + r)), at least 1. So lists should begin with the
// nearest, as a built graph's do. `neighbours(i)` gives member positions; positions >= n are
// ignored. O(edges of a page) per step: candidates are counted in a small table while a page fills.
std::vector<std::size_t> pack_pages(
    std::size_t n, std::size_t per_page, std::size_t start,
    const std::function<std::span<const NodeId>(std::size_t)>& neighbours);

// Share of expansions that need no read of their own: 1 - distinct pages / expansions, for a
// sequence of expanded members and the order above.
double page_sharing(const std::vector<std::size_t>& order, std::size_t per_page,
                    std::span<const NodeId> expanded);

// Within each run of `per_unit` of an order, brings near vectors together, so that the `per_page`
// that will share a page of vectors are likely to be read together. `vector(i, to)` gives the i-th
// item's, `dim` floats. Greedy: the tightest group of those left comes first.
void group_nearest(std::vector<std::size_t>& order, std::size_t per_unit, std::size_t per_page,
                   std::size_t dim, const std::function<void(std::size_t, float*)>& vector);

}  // namespace navis
