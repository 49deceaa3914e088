#include "traversal.hpp"

#include <algorithm>

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
                      Purpose purpose) {
  release();
  guard_ = store_.epochs.enter_guard();
  quantized_ = store_.quantized();
  purpose_ = purpose;
  // The stop rule is calibrated on ten neighbours; the first of them alone is "stable" too early.
  k_ = std::max<std::size_t>(k, 10);
  list_ = std::max(list, k);
  rerank_ = rerank;
  query_.assign(query, query + store_.space.dim());
  table_.resize(quantized_->pq.subspaces() * 256);
  quantized_->pq.table(query_.data(), table_.data());
  working_.resize(store_.space.dim());
  pool_.clear();
  first_ = 0;
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
  enter();
}

void Traversal::release() {
  for (std::byte* b : taken_units_) unit_pool_.give(b);
  for (std::byte* b : taken_vectors_) vector_pool_.give(b);
  taken_units_.clear();
  taken_vectors_.clear();
  units_.clear();
  vector_pages_.clear();
  raw_copies_.clear();
  unchecked_.clear();
  guard_.release();
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
  meet(entries);
}

bool Traversal::advance() {
  arrived();
  while (next_batch()) {
    // The first k candidates will hardly change any more: look at vectors while edges are fetched.
    if (!store_.packed() && first_ >= k_) queue_vectors();
    if (!requests_.empty()) return false;
    arrived();
  }
  if (!store_.packed()) {
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
  while (first_ < pool_.size() && pool_[first_].expanded) ++first_;
  for (std::size_t i = first_; i < pool_.size() && batch_.size() < store_.session.beam; ++i) {
    if (pool_[i].expanded) continue;
    pool_[i].expanded = true;
    if (store_.packed()) pool_[i].exact = true;
    batch_.push_back({pool_[i].node.id, pool_[i].node.distance, 0});
    resolve(batch_.back());
  }
  return !batch_.empty();
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
  taken_units_.push_back(step.unit);
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
    if (store_.cache) {
      store_.cache->offer(step.id, list, [&] {
        return store_.location[step.id].load(std::memory_order_acquire) == step.location;
      });
    }
  }
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

// New nodes enter the pool by PQ distance.
void Traversal::meet(std::span<const NodeId> ids) {
  fresh_.clear();
  for (const NodeId id : ids) {
    if (visited_.insert(id)) fresh_.push_back(id);
  }
  distances_.resize(fresh_.size());
  quantized_->distances(table_.data(), fresh_.data(), fresh_.size(), distances_.data(), codes_);
  for (std::size_t i = 0; i < fresh_.size(); ++i) {
    const Neighbour node{fresh_[i], distances_[i]};
    if (pool_.size() >= list_ && !(node < pool_.back().node)) continue;
    const auto at =
        std::lower_bound(pool_.begin(), pool_.end(), node,
                         [](const Candidate& c, const Neighbour& n) { return c.node < n; });
    first_ = std::min(first_, static_cast<std::size_t>(at - pool_.begin()));
    pool_.insert(at, Candidate{node});
    if (pool_.size() > list_) pool_.pop_back();
  }
}

bool Traversal::wants_vector(const Candidate& c, std::size_t queued) const {
  if (!store_.session.rerank || nearest_.size() + queued < k_) return true;
  return nearest_.size() < k_ || c.node.distance * rerank_.margin < nearest_.back().distance;
}

// Asks for the vectors of the next group of candidates; false when the top k is stable.
bool Traversal::queue_vectors() {
  for (Candidate& c : pool_) {
    if (c.exact || !store_.is_live(c.node.id)) continue;
    if (vector_batch_.size() >= rerank_.group || !wants_vector(c, vector_batch_.size())) break;
    c.exact = true;
    const NodeId id = c.node.id;
    const bool pending = store_.fresh.find(
        id, [&](const std::vector<std::byte>& raw) { raw_copies_.push_back(raw); });
    if (pending) {
      vector_batch_.push_back({id, raw_copies_.back().data()});
      continue;
    }
    const VectorPlace place = store_.vector_place(id);
    std::byte* buffer = nullptr;
    const bool shares = store_.session.share_pages && store_.vectors_per_page() > 1;
    if (shares) {
      if (const auto held = vector_pages_.find(place.offset); held != vector_pages_.end()) {
        buffer = held->second;
      }
    }
    if (!buffer) {
      buffer = vector_pool_.take();
      taken_vectors_.push_back(buffer);
      if (shares) vector_pages_[place.offset] = buffer;
      requests_.push_back({&store_.vectors, place.offset, place.bytes, buffer});
      count(&Counters::search_vector_reads, &Counters::seek_vector_reads);
      count(&Counters::search_read_bytes, &Counters::seek_read_bytes, place.bytes);
    }
    vector_batch_.push_back({id, buffer + place.skip});
  }
  return !vector_batch_.empty();
}

void Traversal::look_at(NodeId id, const std::byte* raw) {
  if (!store_.vector_matches(id, raw)) {
    // A page in hand may be older than a vector written to it since; what is there now decides.
    reread_.resize(store_.space.raw_bytes());
    store_.read_vector(id, reread_.data());
    raw = reread_.data();
  }
  count(&Counters::search_vectors, &Counters::seek_vectors);
  store_.space.stored(raw, working_.data());
  const float key = purpose_ == Purpose::search
                        ? store_.space.key(query_.data(), working_.data())
                        : kernels::l2(query_.data(), working_.data(), working_.size());
  Exact e{{id, key}};
  if (purpose_ == Purpose::seek) {
    e.vector_at = static_cast<std::uint32_t>(exact_.size());
    e.raw_at = e.vector_at;
    vectors_.insert(vectors_.end(), working_.begin(), working_.end());
    if (store_.packed()) raws_.insert(raws_.end(), raw, raw + store_.space.raw_bytes());
  }
  exact_.push_back(e);
  if (!store_.is_live(id)) return;
  const auto at = std::lower_bound(nearest_.begin(), nearest_.end(), e.node);
  if (nearest_.size() >= k_ && at == nearest_.end()) return;
  nearest_.insert(at, e.node);
  if (nearest_.size() > k_) nearest_.pop_back();
}

}  // namespace navis
