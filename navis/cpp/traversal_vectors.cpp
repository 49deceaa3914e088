// Traversal: which vectors are looked at exactly, and when that ends (NAVIS, convergence-aware
// re-ranking).
#include <algorithm>
#include <limits>

#include "traversal.hpp"

namespace navis {

// The pool is made of the nearest by code among all nodes that may be results.
void Traversal::scan() {
  std::vector<Neighbour> best;
  float bound = std::numeric_limits<float>::max();  // of no use beyond it
  auto shrink = [&] {
    if (best.size() <= pool_.limit) return;
    const auto last = best.begin() + static_cast<std::ptrdiff_t>(pool_.limit);
    std::nth_element(best.begin(), last, best.end());
    bound = last->distance;
    best.erase(last, best.end());
  };
  constexpr std::size_t kTogether = 256;
  auto look = [&] {
    distances_.resize(fresh_.size());
    quantized_->distances(table_.data(), fresh_.data(), fresh_.size(), distances_.data(), codes_);
    for (std::size_t i = 0; i < fresh_.size(); ++i) {
      if (distances_[i] <= bound && admits(fresh_[i])) best.push_back({fresh_[i], distances_[i]});
    }
    fresh_.clear();
    if (best.size() >= 2 * pool_.limit + kTogether) shrink();
  };
  fresh_.clear();
  auto take = [&](NodeId id) {
    fresh_.push_back(id);
    if (fresh_.size() == kTogether) look();
  };
  if (filter_) {
    for (const NodeId id : filter_->nodes()) take(id);
  } else {
    const NodeId rows = store_.rows.load(std::memory_order_acquire);
    for (NodeId id = 0; id < rows; ++id) {
      if (store_.is_live(id)) take(id);
    }
  }
  look();
  shrink();
  std::sort(best.begin(), best.end());
  for (const Neighbour& node : best) pool_.candidates.push_back({node, true});
}

bool Traversal::wants_vector(const Candidate& c, std::size_t queued) const {
  if (k_ == 0) return false;
  if (!store_.session.rerank || nearest_.size() + queued < k_) return true;
  return nearest_.size() < k_ || c.node.distance * rerank_.margin < nearest_.back().distance;
}

// Asks for the vectors of the next group of candidates; false when the top k is stable.
bool Traversal::queue_vectors() {
  std::size_t queued = 0;
  for (std::size_t i = 0; i < pool_.candidates.size(); ++i) {
    Candidate& c = pool_.candidates[i];
    if (!scan_ && i >= list_) break;  // there only to be walked from
    if (c.exact || !store_.is_live(c.node.id)) continue;
    if (queued >= rerank_.group || !wants_vector(c, queued)) break;
    if (store_.session.rerank && exact_.size() + queued >= rerank_.most) break;
    // Far from the query, where all that matches may lie, codes tell little of the order. So beyond
    // the list a scan goes on until as many vectors again have changed nothing.
    if (i >= list_ && exact_.size() >= changed_ + std::max(changed_, 3UL * rerank_.group)) break;
    c.exact = true;
    ++queued;
    if (store_.packed()) {
      batch_.push_back({c.node.id, c.node.distance, 0});
      resolve(batch_.back());
    } else {
      queue_vector(c.node.id);
    }
  }
  return queued > 0;
}

void Traversal::queue_vector(NodeId id) {
  const bool pending =
      store_.fresh.find(id, [&](const std::vector<std::byte>& raw) { raw_copies_.push_back(raw); });
  if (pending) {
    vector_batch_.push_back({id, raw_copies_.back().data()});
    return;
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

void Traversal::look_at(NodeId id, const std::byte* raw) {
  if (filter_ && !filter_->matches(id)) return;  // packed layout: its record was on the way
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
  if (!admits(id)) return;
  const auto at = std::lower_bound(nearest_.begin(), nearest_.end(), e.node);
  if (nearest_.size() >= k_ && at == nearest_.end()) return;
  changed_ = exact_.size();
  nearest_.insert(at, e.node);
  if (nearest_.size() > k_) nearest_.pop_back();
}

}  // namespace navis
