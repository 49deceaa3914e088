// Search: many traversals over several threads, and what to do when the graph gives too little.
#include <algorithm>
#include <chrono>

#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

// The k nearest by looking at every code, then at the vectors of the best. Only where walking finds
// fewer than k: deletes may cut a node off until compaction.
std::vector<Neighbour> Index::exhaustive(const Traversal& t, std::size_t k) {
  Store& s = *store_;
  const Quantized& q = t.quantized();
  std::vector<float> table(q.pq.subspaces() * 256);
  q.pq.table(t.query().data(), table.data());
  std::vector<Neighbour> best;
  std::vector<const std::uint8_t*> scratch;
  for (NodeId id = 0; id < s.rows.load(std::memory_order_acquire); ++id) {
    if (!s.is_live(id)) continue;
    float distance = 0;
    q.distances(table.data(), &id, 1, &distance, scratch);
    best.push_back({id, distance});
  }
  const std::size_t kept = std::min(best.size(), 4 * k);
  std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(kept), best.end());
  best.resize(kept);
  std::vector<std::byte> raw(s.space.raw_bytes());
  std::vector<float> working(s.space.dim());
  for (Neighbour& n : best) {
    s.read_vector(n.id, raw.data());
    s.space.stored(raw.data(), working.data());
    n.distance = s.space.key(t.query().data(), working.data());
  }
  std::sort(best.begin(), best.end());
  best.resize(std::min(best.size(), k));
  s.counters.exhaustive_searches.fetch_add(1, std::memory_order_relaxed);
  return best;
}

void Index::search(const float* queries, std::size_t n, const SearchOptions& options,
                   std::uint64_t* ids, float* distances, float* micros) {
  require_open(false);
  Store& s = *store_;
  warm();
  Rerank rerank = options.rerank;
  if (rerank.margin < 0) rerank.margin = margin();
  using Clock = std::chrono::steady_clock;
  std::atomic<std::size_t> next{0};
  auto work = [&] {
    auto lease = lane();
    std::vector<float> working(s.space.dim());
    std::vector<std::size_t> job(8);
    std::vector<std::size_t> list(8);
    std::vector<Clock::time_point> begun(8);
    std::vector<std::size_t> again;  // found fewer than k: once more with a longer list
    auto begin = [&](Traversal& t, std::size_t i, std::size_t length) {
      s.space.query(queries + i * s.options.dim, working.data());
      list[t.slot] = length;
      job[t.slot] = i;
      t.begin(working.data(), options.k, length, rerank, Traversal::Purpose::search);
    };
    std::vector<std::size_t> longer;
    lease->run(
        s.session.in_flight,
        [&](Traversal& t) {
          if (!again.empty()) {
            const std::size_t i = again.back(), length = longer.back();
            again.pop_back();
            longer.pop_back();
            begin(t, i, length);
            return true;
          }
          const std::size_t i = next.fetch_add(1);
          if (i >= n) return false;
          begun[t.slot] = Clock::now();
          begin(t, i, options.list);
          return true;
        },
        [&](Traversal& t) {
          const std::size_t i = job[t.slot];
          const std::size_t wanted = std::min<std::size_t>(options.k, s.live.load());
          std::vector<Neighbour> rest;
          if (t.nearest().size() < wanted) {
            if (list[t.slot] < 2 * std::size_t{s.rows.load(std::memory_order_relaxed)}) {
              again.push_back(i);
              longer.push_back(list[t.slot] * 2);
              return;
            }
            rest = exhaustive(t, options.k);
          }
          const auto& nearest = rest.empty() ? t.nearest() : rest;
          for (std::size_t k = 0; k < options.k; ++k) {
            const bool has = k < nearest.size();
            ids[i * options.k + k] = has ? s.external[nearest[k].id] : UINT64_MAX;
            distances[i * options.k + k] =
                has ? s.space.distance(nearest[k].distance, t.query().data())
                    : std::numeric_limits<float>::infinity();
          }
          if (micros) {
            micros[i] =
                std::chrono::duration<float, std::micro>(Clock::now() - begun[t.slot]).count();
          }
          s.counters.searches.fetch_add(1, std::memory_order_relaxed);
        });
  };
  run_threads(std::min<std::size_t>(options.threads, n), work);
}

}  // namespace navis
