#include "traversal.hpp"

#include <algorithm>
#include <limits>

namespace navis {

std::byte* BufferPool::take() {
  if (free_.empty()) {
    slabs_.emplace_back(kPerSlab * bytes_);
    for (std::size_t i = kPerSlab; i-- > 0;) {
      free_.push_back(slabs_.back().span(i * bytes_, bytes_).data());
    }
  }
  std::byte* buffer = free_.back();
  free_.pop_back();
  return buffer;
}

void VisitedSet::clear() {
  std::fill(table_.begin(), table_.end(), kNoNode);
  size_ = 0;
}

bool VisitedSet::insert(NodeId id) {
  const std::size_t mask = table_.size() - 1;
  std::size_t at = (id * 0x9E3779B1U) & mask;
  while (table_[at] != kNoNode) {
    if (table_[at] == id) return false;
    at = (at + 1) & mask;
  }
  table_[at] = id;
  if (++size_ * 2 > table_.size()) {
    std::vector<NodeId> old(table_.size() * 2, kNoNode);
    old.swap(table_);
    size_ = 0;
    for (const NodeId held : old) {
      if (held != kNoNode) insert(held);
    }
  }
  return true;
}

Traversal::Traversal(Store& store, BufferPool& units, BufferPool& vectors)
    : store_(store), unit_pool_(units), vector_pool_(vectors) {}

void Traversal::begin(const float* query, std::size_t k, std::size_t list, const Rerank& rerank,
                      Purpose purpose, const FilterPlan* filter, bool scanning) {
  release();
  guard_ = store_.epochs.enter_guard();
  filter_ = filter;
  scan_ = scanning;
  quantized_ = store_.quantized();
  purpose_ = purpose;
  list_ = std::max(list, k);
  // The stop rule is calibrated on ten neighbours; the first of them alone is "stable" too early.
  k_ = k == 0 ? 0 : std::min<std::size_t>(std::max<std::size_t>(k, 10), list_);
  changed_ = 0;
  rerank_ = rerank;
  query_.assign(query, query + store_.space.dim());
  table_.resize(quantized_->pq.subspaces() * 256);
  quantized_->pq.table(query_.data(), table_.data());
  working_.resize(store_.space.dim());
  conclusive_ = true;
  pool_.clear((scan_ ? 8 * list_ : list_) + beyond(), list_);
  const std::size_t others = filter_ && !scan_ ? filter_->others() : 0;
  others_.clear(others, others);
  visited_.clear();
  entrance_.clear();
  expanded_.clear();
  arena_.clear();
  exact_.clear();
  vectors_.clear();
  raws_.clear();
  nearest_.clear();
  batch_.clear();
  vector_batch_.clear();
  requests_.clear();
  if (scan_) {
    scan();
  } else {
    enter();
  }
}

void Traversal::release() {
  for (const auto& [unit, b] : taken_units_) unit_pool_.give(b);
  for (std::byte* b : taken_vectors_) vector_pool_.give(b);
  taken_units_.clear();
  taken_vectors_.clear();
  units_.clear();
  vector_pages_.clear();
  raw_copies_.clear();
  unchecked_.clear();
  guard_.release();
}

// How many candidates behind the list are kept, to be walked from where their edges are in hand.
// With a cache of lists, which pages are in hand would depend on what it holds.
std::size_t Traversal::beyond() const {
  const bool pages_are_kept = purpose_ == Purpose::search && !store_.packed() &&
                              store_.session.share_pages && !store_.cache;
  return pages_are_kept && !filter_ && !scan_ ? list_ : 0;
}

void Traversal::enter() {
  constexpr std::size_t kEntranceList = 16, kEntries = 8;
  if (store_.session.entrance != EntranceMode::none) {
    store_.entrance.search(*quantized_, table_.data(), kEntranceList, entrance_);
  }
  std::vector<NodeId> entries;
  for (std::size_t i = 0; i < entrance_.size() && i < kEntries; ++i) {
    entries.push_back(entrance_[i].node.id);
  }
  const NodeId medoid = store_.medoid.load(std::memory_order_acquire);
  if (entries.empty() && medoid != kNoNode) entries.push_back(medoid);
  if (filter_ && store_.session.entrance != EntranceMode::none) {
    // Matching nodes may all lie far from the query: those in memory are beginnings as well.
    constexpr std::size_t kLooked = 1U << 14U;
    store_.entrance.each(kLooked, [&](NodeId id) {
      if (filter_->matches(id)) entries.push_back(id);
    });
  }
  meet(entries);
}

bool Traversal::advance() {
  arrived();
  while (!scan_ && next_batch()) {
    // The first k candidates will hardly change any more: look at vectors while edges are fetched.
    if (!store_.packed() && settled_) queue_vectors();
    if (!requests_.empty()) return false;
    arrived();
  }
  if (!store_.packed() || scan_) {
    while (queue_vectors()) {
      if (!requests_.empty()) return false;
      arrived();
    }
  }
  return true;
}

// The nearest candidates not yet expanded become the batch; false when there are none.
bool Traversal::next_batch() {
  requests_.clear();
  batch_.clear();
  if (purpose_ == Purpose::search) {
    // A long walk does not hold ever more: neither lists nor pages that were of use long ago.
    arena_.clear();
    const std::size_t most = std::max<std::size_t>(list_, store_.options.insert_list) + 8;
    for (; taken_units_.size() > most; taken_units_.pop_front()) {
      units_.erase(taken_units_.front().first);
      unit_pool_.give(taken_units_.front().second);
    }
  }
  // Whether the k nearest have been expanded, and nothing nearer is left to be.
  pool_.next();
  const Candidate* other = others_.next();
  settled_ = k_ > 0 && pool_.first >= k_ && (!other || pool_.candidates[k_ - 1].node < other->node);
  while (batch_.size() < store_.session.beam) {
    Candidate* c = next_candidate();
    if (!c && batch_.empty()) c = in_hand();
    if (!c) break;
    c->expanded = true;
    if (store_.packed()) c->exact = true;
    batch_.push_back({c->node.id, c->node.distance, 0});
    resolve(batch_.back());
  }
  return !batch_.empty();
}

Traversal::Candidate* Traversal::next_candidate() {
  Candidate* own = pool_.next();
  Candidate* other = others_.next();
  // Beyond the worst that matches, the way is not worth going on.
  if (other && !pool_.takes(other->node)) other = nullptr;
  if (filter_ && !other && filter_->rescans()) {
    const bool beyond =
        pool_.candidates.size() < k_ || others_.lost < pool_.candidates[k_ - 1].node.distance;
    if (beyond && (!own || others_.lost < own->node.distance)) {
      conclusive_ = false;
      return nullptr;
    }
  }
  return !own || (other && other->node < own->node) ? other : own;
}

// When the list has been walked: one behind it whose edges are in a page that is here already. To
// use all lists of a page that was read costs no read and finds what a longer list would.
Traversal::Candidate* Traversal::in_hand() {
  for (std::size_t i = pool_.walked; i < pool_.candidates.size(); ++i) {
    Candidate& c = pool_.candidates[i];
    if (c.expanded) continue;
    const std::uint32_t location = store_.location[c.node.id].load(std::memory_order_acquire);
    if (location != kPendingLoc && units_.contains(store_.unit_of(location))) return &c;
  }
  return nullptr;
}

// Finds the step's list in memory, or asks for its unit.
void Traversal::resolve(Step& step) {
  const std::size_t at = arena_.size(), degree = store_.format.degree();
  for (;;) {
    step.location = store_.location[step.id].load(std::memory_order_acquire);
    if (step.location != kPendingLoc) break;
    const bool there = store_.lists.find(step.id, [&](const PendingEntry& entry) {
      arena_.insert(arena_.end(), entry.list.begin(), entry.list.end());
      if (store_.packed()) raw_copies_.push_back(entry.vector);
    });
    if (!there) continue;  // written in this moment: the location has changed
    step.from_arena = true;
    step.list_at = static_cast<std::uint32_t>(at);
    step.list_count = static_cast<std::uint32_t>(arena_.size() - at);
    if (store_.packed()) vector_batch_.push_back({step.id, raw_copies_.back().data()});
    count(&Counters::search_cached, &Counters::seek_cached);
    return;
  }
  if (store_.cache) {
    arena_.resize(at + degree);
    const int found =
        store_.cache->find(step.id, expanded_.size() + batch_.size() - 1, arena_.data() + at);
    arena_.resize(at + static_cast<std::size_t>(std::max(found, 0)));
    if (found >= 0) {
      step.from_arena = true;
      step.list_at = static_cast<std::uint32_t>(at);
      step.list_count = static_cast<std::uint32_t>(found);
      count(&Counters::search_cached, &Counters::seek_cached);
      return;
    }
  }
  const std::uint32_t unit = store_.unit_of(step.location);
  if (store_.session.share_pages) {
    if (const auto held = units_.find(unit); held != units_.end()) {
      step.unit = held->second;
      count(&Counters::search_shared, &Counters::seek_shared);
      return;
    }
  }
  step.unit = unit_pool_.take();
  taken_units_.emplace_back(unit, step.unit);
  units_[unit] = step.unit;
  unchecked_.emplace_back(unit, step.unit);
  const std::size_t bytes = store_.format.unit_bytes();
  requests_.push_back({&store_.pages, store_.unit_offset(unit), bytes, step.unit});
  count(&Counters::search_edge_reads, &Counters::seek_edge_reads);
  count(&Counters::search_read_bytes, &Counters::seek_read_bytes, bytes);
}

void Traversal::arrived() {
  requests_.clear();
  for (const auto& [unit, bytes] : unchecked_) store_.check_unit(unit, bytes);
  unchecked_.clear();
  for (const Step& step : batch_) expand(step);
  batch_.clear();
  for (const VectorStep& v : vector_batch_) look_at(v.id, v.raw);
  vector_batch_.clear();
  raw_copies_.clear();
}

void Traversal::expand(const Step& step) {
  std::span<const NodeId> list{arena_.data() + step.list_at, step.list_count};
  if (!step.from_arena) {
    const PageView page(store_.format, step.unit);
    const std::size_t place = store_.slot_of(step.location);
    if (place >= page.slots() || page.id(place) != step.id) {
      throw Error(ErrorKind::corrupt, store_.pages.path().string() + ": the list of id " +
                                          std::to_string(store_.external[step.id]) +
                                          " is not where the table says");
    }
    list = page.list(place);
    if (store_.packed()) look_at(step.id, page.vector(place));
    if (scan_) return;
    if (store_.cache) {
      store_.cache->offer(step.id, list, [&] {
        return store_.location[step.id].load(std::memory_order_acquire) == step.location;
      });
    }
  }
  if (scan_) return;
  Expanded e{{step.id, step.distance}, step.location, step.list_at, step.list_count};
  if (purpose_ == Purpose::seek && !step.from_arena) {
    e.list_at = static_cast<std::uint32_t>(arena_.size());
    e.list_count = static_cast<std::uint32_t>(list.size());
    arena_.insert(arena_.end(), list.begin(), list.end());
    list = {arena_.data() + e.list_at, e.list_count};
  }
  expanded_.push_back(e);
  count(&Counters::search_expansions, &Counters::seek_expansions);
  meet(list);
}

void Traversal::Pool::clear(std::size_t most, std::size_t most_walked) {
  candidates.clear();
  limit = most;
  walked = most_walked;
  first = 0;
  lost = std::numeric_limits<float>::max();
}

void Traversal::Pool::add(const Neighbour& node) {
  if (!takes(node)) {
    lost = std::min(lost, node.distance);
    return;
  }
  const auto at =
      std::lower_bound(candidates.begin(), candidates.end(), node,
                       [](const Candidate& c, const Neighbour& n) { return c.node < n; });
  first = std::min(first, static_cast<std::size_t>(at - candidates.begin()));
  candidates.insert(at, Candidate{node});
  if (candidates.size() <= limit) return;
  if (!candidates.back().expanded) lost = std::min(lost, candidates.back().node.distance);
  candidates.pop_back();
}

Traversal::Candidate* Traversal::Pool::next() {
  const std::size_t end = std::min(candidates.size(), walked);
  while (first < end && candidates[first].expanded) ++first;
  return first < end ? &candidates[first] : nullptr;
}

// New nodes enter the pools by PQ distance.
void Traversal::meet(std::span<const NodeId> ids) {
  fresh_.clear();
  const NodeId rows = store_.rows.load(std::memory_order_acquire);
  for (const NodeId id : ids) {
    // Opened readonly, and another process has written to a page since.
    if (id >= rows) {
      throw Error(ErrorKind::corrupt,
                  store_.pages.path().string() + " names a vector that is not in the tables");
    }
    if (visited_.insert(id)) fresh_.push_back(id);
  }
  distances_.resize(fresh_.size());
  quantized_->distances(table_.data(), fresh_.data(), fresh_.size(), distances_.data(), codes_);
  for (std::size_t i = 0; i < fresh_.size(); ++i) {
    const Neighbour node{fresh_[i], distances_[i]};
    if (!pool_.takes(node)) continue;
    if (!filter_ || filter_->matches(node.id)) {
      pool_.add(node);
    } else {
      others_.add(node);
    }
  }
}

}  // namespace navis
