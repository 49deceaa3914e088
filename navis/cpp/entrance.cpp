#include "entrance.hpp"

#include <algorithm>
#include <unordered_set>

#include "vamana.hpp"

namespace navis {

Entrance::~Entrance() {
  for (std::uint32_t s = 0; s < rows_; ++s) delete table_[s].edges.load();
  for (const auto& [stamp, edges] : retired_) delete edges;
}

void Entrance::search(const Quantized& quantized, const float* table, std::size_t list,
                      std::vector<Found>& found) const {
  found.clear();
  const std::uint32_t start = start_.load(std::memory_order_acquire);
  if (start == kNoNode) return;
  thread_local std::vector<std::uint32_t> fresh;
  thread_local std::vector<NodeId> ids;
  thread_local std::vector<float> distances;
  thread_local std::vector<const std::uint8_t*> scratch;
  thread_local std::vector<std::uint64_t> seen;
  seen.assign((rows_.load(std::memory_order_acquire) + 63) / 64 + 1, 0);

  auto meet = [&](std::uint32_t slot) {
    if (slot / 64 >= seen.size()) return;  // younger than this search
    std::uint64_t& word = seen[slot / 64];
    const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
    if (word & bit) return;
    word |= bit;
    const NodeId id = table_[slot].id.load(std::memory_order_acquire);
    if (id == kNoNode) return;
    fresh.push_back(slot);
    ids.push_back(id);
  };
  auto admit = [&] {
    distances.resize(ids.size());
    quantized.distances(table, ids.data(), ids.size(), distances.data(), scratch);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const Neighbour node{ids[i], distances[i]};
      if (found.size() >= list && !(node < found.back().node)) continue;
      const auto at =
          std::lower_bound(found.begin(), found.end(), node,
                           [](const Found& f, const Neighbour& n) { return f.node < n; });
      found.insert(at, {fresh[i], node, false});
      if (found.size() > list) found.pop_back();
    }
    fresh.clear();
    ids.clear();
  };

  meet(start);
  admit();
  for (std::size_t next = 0; next < found.size();) {
    if (found[next].expanded) {
      ++next;
      continue;
    }
    found[next].expanded = true;
    const Slot& slot = table_[found[next].slot];
    if (const Edges* edges = slot.edges.load(std::memory_order_acquire)) {
      for (std::uint32_t i = 0; i < edges->count; ++i) meet(edges->slots[i]);
    }
    admit();
    next = 0;
    while (next < found.size() && found[next].expanded) ++next;
  }
  if (!found.empty()) {
    const_cast<Slot&>(table_[found[0].slot]).hits.fetch_add(1, std::memory_order_relaxed);
  }
}

void Entrance::build(const Quantized& quantized, const std::vector<NodeId>& ids,
                     std::uint64_t seed) {
  const std::size_t dim = quantized.pq.dim();
  std::vector<float> vectors(ids.size() * dim);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    quantized.pq.decode(quantized.codes.row(ids[i]), vectors.data() + i * dim);
  }
  BuildOptions options;
  options.degree = kDegree;
  options.search_list = 64;
  options.seed = seed;
  const Graph graph = build_vamana(vectors.data(), ids.size(), dim, options);
  std::vector<std::vector<std::uint32_t>> edges(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    edges[i].assign(graph.of(i).begin(), graph.of(i).end());
  }
  load(quantized, ids, edges);
  if (!ids.empty()) start_ = medoid(vectors.data(), ids.size(), dim);
}

void Entrance::load(const Quantized& quantized, const std::vector<NodeId>& ids,
                    const std::vector<std::vector<std::uint32_t>>& edges) {
  for (std::uint32_t s = 0; s < rows_; ++s) {
    table_[s].id = kNoNode;
    publish(s, {});
  }
  slots_.clear();
  empty_.clear();
  table_.grow(ids.size());
  rows_ = std::max<std::uint32_t>(rows_, static_cast<std::uint32_t>(ids.size()));
  for (std::uint32_t s = 0; s < ids.size(); ++s) {
    publish(s, edges[s]);
    table_[s].id.store(ids[s], std::memory_order_release);
    if (ids[s] == kNoNode) {
      empty_.push_back(s);
    } else {
      slots_[ids[s]] = s;
    }
  }
  for (std::uint32_t s = static_cast<std::uint32_t>(ids.size()); s < rows_; ++s) {
    empty_.push_back(s);
  }
  size_ = slots_.size();
  start_.store(slots_.empty() ? kNoNode : 0, std::memory_order_release);  // save() puts it first
  measure_spacing(quantized);
}

void Entrance::save(std::vector<NodeId>& ids,
                    std::vector<std::vector<std::uint32_t>>& edges) const {
  ids.clear();
  edges.clear();
  // The start comes first, so that it is the start again.
  std::vector<std::uint32_t> place(rows_, kNoNode), order;
  const std::uint32_t start = start_;
  auto take = [&](std::uint32_t s) {
    if (place[s] != kNoNode || table_[s].id == kNoNode) return;
    place[s] = static_cast<std::uint32_t>(order.size());
    order.push_back(s);
  };
  if (start != kNoNode) take(start);
  for (std::uint32_t s = 0; s < rows_; ++s) take(s);
  for (const std::uint32_t s : order) {
    ids.push_back(table_[s].id);
    auto& list = edges.emplace_back();
    for (const std::uint32_t to : list_of(s)) {
      if (place[to] != kNoNode) list.push_back(place[to]);
    }
  }
}

bool Entrance::promote(const Quantized& quantized, NodeId id, const std::vector<Found>& explored,
                       const std::vector<Neighbour>& expanded, std::size_t bound) {
  if (bound == 0 || slots_.contains(id)) return false;
  reclaim();
  if (size_ >= bound) {
    NodeId least = kNoNode;
    std::uint32_t fewest = 0;
    // The least used of a few, in turn: exact would be a scan per promotion.
    const std::uint32_t rows = rows_;
    for (std::uint32_t i = 0, tried = 0; i < rows && tried < 16; ++i) {
      const std::uint32_t s = static_cast<std::uint32_t>((evictions_ * 16 + i) % rows);
      if (table_[s].id == kNoNode || s == start_) continue;
      ++tried;
      const std::uint32_t hits = table_[s].hits.load(std::memory_order_relaxed);
      if (least == kNoNode || hits < fewest) {
        least = table_[s].id;
        fewest = hits;
      }
    }
    if (least == kNoNode) return false;
    erase(quantized, least);
    ++evictions_;
  }
  std::vector<std::uint32_t> candidates;
  for (const Found& f : explored) {
    if (table_[f.slot].id == f.node.id) candidates.push_back(f.slot);
  }
  for (const Neighbour& n : expanded) {
    if (const auto at = slots_.find(n.id); at != slots_.end()) candidates.push_back(at->second);
  }
  const std::vector<std::uint32_t> chosen = choose(quantized, id, std::move(candidates));
  const std::uint32_t slot = take_slot();
  publish(slot, chosen);
  table_[slot].hits.store(1, std::memory_order_relaxed);
  table_[slot].id.store(id, std::memory_order_release);
  slots_[id] = slot;
  size_ = slots_.size();
  for (const std::uint32_t to : chosen) link_back(quantized, to, slot);
  if (start_ == kNoNode) start_.store(slot, std::memory_order_release);
  return true;
}

void Entrance::erase(const Quantized& quantized, NodeId id) {
  const auto at = slots_.find(id);
  if (at == slots_.end()) return;
  const std::uint32_t gone = at->second;
  const std::vector<std::uint32_t> heirs = list_of(gone);
  slots_.erase(at);
  size_ = slots_.size();
  table_[gone].id.store(kNoNode, std::memory_order_release);
  for (std::uint32_t s = 0; s < rows_; ++s) {
    const NodeId owner = table_[s].id;
    if (owner == kNoNode) continue;
    std::vector<std::uint32_t> list = list_of(s);
    if (std::erase(list, gone) == 0) continue;
    for (const std::uint32_t heir : heirs) {
      if (heir != s) list.push_back(heir);
    }
    publish(s, choose(quantized, owner, std::move(list)));
  }
  publish(gone, {});
  leaving_.emplace_back(epochs_.retire(), gone);
  if (start_ == gone) {
    start_.store(slots_.empty() ? kNoNode : slots_.begin()->second, std::memory_order_release);
  }
}

std::vector<NodeId> Entrance::ids() const {
  std::vector<NodeId> all;
  for (const auto& [id, slot] : slots_) all.push_back(id);
  return all;
}

std::size_t Entrance::memory_bytes() const {
  return table_.memory_bytes() + size() * (sizeof(Edges) + 48);
}

std::uint32_t Entrance::take_slot() {
  if (!empty_.empty()) {
    const std::uint32_t slot = empty_.back();
    empty_.pop_back();
    return slot;
  }
  table_.grow(rows_ + 1);
  return rows_.fetch_add(1, std::memory_order_release);
}

void Entrance::publish(std::uint32_t slot, const std::vector<std::uint32_t>& list) {
  auto* edges = new Edges{};
  edges->count = static_cast<std::uint32_t>(std::min(list.size(), kDegree));
  std::copy_n(list.begin(), edges->count, edges->slots);
  const Edges* old = table_[slot].edges.exchange(edges, std::memory_order_acq_rel);
  if (old) retired_.emplace_back(epochs_.retire(), old);
}

void Entrance::reclaim() {
  if (retired_.size() < 64 && leaving_.empty()) return;
  const std::uint64_t oldest = epochs_.oldest();
  std::erase_if(retired_, [&](const auto& r) {
    if (r.first >= oldest) return false;
    delete r.second;
    return true;
  });
  std::erase_if(leaving_, [&](const auto& r) {
    if (r.first >= oldest) return false;
    empty_.push_back(r.second);
    return true;
  });
}

void Entrance::link_back(const Quantized& quantized, std::uint32_t from, std::uint32_t to) {
  std::vector<std::uint32_t> list = list_of(from);
  list.push_back(to);
  if (list.size() > kDegree) list = choose(quantized, table_[from].id, std::move(list));
  publish(from, list);
}

std::vector<std::uint32_t> Entrance::list_of(std::uint32_t slot) const {
  const Edges* edges = table_[slot].edges.load(std::memory_order_acquire);
  if (!edges) return {};
  return {edges->slots, edges->slots + edges->count};
}

std::vector<std::uint32_t> Entrance::choose(const Quantized& quantized, NodeId id,
                                            std::vector<std::uint32_t> candidates) const {
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  const std::size_t dim = quantized.pq.dim();
  std::vector<float> own(dim), vectors;
  quantized.pq.decode(quantized.codes.row(id), own.data());
  struct Candidate {
    Neighbour node;  // id: position of its vector
    std::uint32_t slot;
  };
  std::vector<Candidate> all;
  vectors.reserve(candidates.size() * dim);
  for (const std::uint32_t slot : candidates) {
    const NodeId other = table_[slot].id;
    if (other == kNoNode || other == id) continue;
    const auto at = static_cast<NodeId>(all.size());
    vectors.resize(vectors.size() + dim);
    quantized.pq.decode(quantized.codes.row(other), vectors.data() + at * dim);
    all.push_back({{at, kernels::l2(own.data(), vectors.data() + at * dim, dim)}, slot});
  }
  std::sort(all.begin(), all.end(),
            [](const Candidate& a, const Candidate& b) { return a.node < b.node; });
  std::vector<Neighbour> sorted;
  for (const Candidate& c : all) sorted.push_back(c.node);
  std::vector<std::uint32_t> chosen;
  for (const std::size_t i :
       robust_prune(sorted, kDegree, 1.2F, false, [&](std::size_t a, std::size_t b) {
         return kernels::l2(vectors.data() + sorted[a].id * dim,
                            vectors.data() + sorted[b].id * dim, dim);
       })) {
    chosen.push_back(all[i].slot);
  }
  return chosen;
}

void Entrance::measure_spacing(const Quantized& quantized) {
  const std::size_t dim = quantized.pq.dim();
  std::vector<float> nearest, own(dim), other(dim);
  for (std::uint32_t s = 0; s < rows_; ++s) {
    const NodeId id = table_[s].id;
    if (id == kNoNode) continue;
    quantized.pq.decode(quantized.codes.row(id), own.data());
    float best = std::numeric_limits<float>::max();
    for (const std::uint32_t to : list_of(s)) {
      const NodeId neighbour = table_[to].id;
      if (neighbour == kNoNode) continue;
      quantized.pq.decode(quantized.codes.row(neighbour), other.data());
      best = std::min(best, kernels::l2(own.data(), other.data(), dim));
    }
    nearest.push_back(best);
  }
  if (nearest.empty()) return;
  std::nth_element(nearest.begin(), nearest.begin() + nearest.size() / 2, nearest.end());
  spacing_ = nearest[nearest.size() / 2];
}

}  // namespace navis
