#include "vamana.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels.hpp"
#include "prune.hpp"

namespace navis {
namespace {

std::uint64_t splitmix64(std::uint64_t& state) {
  std::uint64_t mixed = state += 0x9E3779B97F4A7C15U;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9U;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBU;
  return mixed ^ (mixed >> 31);
}

void prefetch(const float* vector, std::size_t dim) {
#if defined(__GNUC__)
  constexpr std::size_t kBytes = 1024;  // the processor goes on by itself
  const char* bytes = reinterpret_cast<const char*>(vector);
  for (std::size_t at = 0; at < std::min(kBytes, dim * sizeof(float)); at += 64) {
    __builtin_prefetch(bytes + at);
  }
#else
  (void)vector, (void)dim;
#endif
}

// Best-first search; one per thread, used again and again.
class Searcher {
 public:
  explicit Searcher(std::size_t n) : seen_(n, 0) {}

  // distance(id) is the squared distance to what is sought, list_of(id) the out-neighbours of a
  // node, prefetch(id) asks for its vector early. Afterwards expanded() is every node whose list
  // was read, ascending; the pool is its beginning, since a search ends with its pool expanded.
  template <class Distance, class ListOf, class Prefetch>
  void run(NodeId entry, std::size_t search_list, Distance&& distance, ListOf&& list_of,
           Prefetch&& prefetch) {
    if (++epoch_ == 0) {
      std::fill(seen_.begin(), seen_.end(), 0U);
      epoch_ = 1;
    }
    pool_.clear();
    expanded_.clear();
    seen_[entry] = epoch_;
    pool_.push_back({{entry, distance(entry)}, false});
    for (std::size_t next = 0; next < pool_.size();) {
      if (pool_[next].expanded) {
        ++next;
        continue;
      }
      pool_[next].expanded = true;
      expanded_.push_back(pool_[next].neighbour);
      fresh_.clear();
      for (NodeId id : list_of(pool_[next].neighbour.id)) {
        if (seen_[id] == epoch_) continue;
        seen_[id] = epoch_;
        fresh_.push_back(id);
      }
      for (std::size_t i = 0; i < std::min(kAhead, fresh_.size()); ++i) prefetch(fresh_[i]);
      for (std::size_t i = 0; i < fresh_.size(); ++i) {
        if (i + kAhead < fresh_.size()) prefetch(fresh_[i + kAhead]);
        next = std::min(next, offer({fresh_[i], distance(fresh_[i])}, search_list));
      }
    }
    std::sort(expanded_.begin(), expanded_.end());
  }

  std::vector<Neighbour>& expanded() { return expanded_; }

 private:
  static constexpr std::size_t kAhead = 2;
  struct Entry {
    Neighbour neighbour;
    bool expanded;
  };

  // The place it took in the pool; the pool's size where it took none.
  std::size_t offer(const Neighbour& met, std::size_t search_list) {
    if (pool_.size() == search_list) {
      if (!(met < pool_.back().neighbour)) return pool_.size();
      pool_.pop_back();
    }
    const auto place =
        std::upper_bound(pool_.begin(), pool_.end(), met,
                         [](const Neighbour& a, const Entry& b) { return a < b.neighbour; });
    const std::ptrdiff_t taken = place - pool_.begin();  // before the insertion moves the pool
    pool_.insert(place, {met, false});
    return static_cast<std::size_t>(taken);
  }

  std::vector<std::uint32_t> seen_;  // stamped with the epoch, so that nothing is cleared
  std::uint32_t epoch_ = 0;
  std::vector<Entry> pool_;
  std::vector<Neighbour> expanded_;
  std::vector<NodeId> fresh_;
};

class Builder {
 public:
  Builder(const float* vectors, std::size_t n, std::size_t dim, const BuildOptions& options)
      : vectors_(vectors),
        n_(n),
        dim_(dim),
        options_(options),
        capacity_(std::max(options.degree + 1,
                           static_cast<std::size_t>(options.slack * float(options.degree)))),
        counts_(n, 0),
        rows_(n * capacity_, kNoNode),
        locks_(kLocks) {}

  Graph build(NodeId entry, const Progress& progress);

 private:
  static constexpr std::size_t kLocks = 4096;
  static constexpr std::size_t kReportEvery = 256;

  struct Worker {
    explicit Worker(std::size_t n) : searcher(n) {}
    Searcher searcher;
    std::vector<NodeId> list;  // of the node being expanded
    std::vector<Neighbour> candidates;
  };

  const float* vector(NodeId id) const { return vectors_ + std::size_t{id} * dim_; }
  float distance(NodeId a, NodeId b) const { return kernels::l2(vector(a), vector(b), dim_); }
  std::mutex& lock_of(NodeId id) { return locks_[id % kLocks]; }

  std::vector<std::size_t> prune(const std::vector<Neighbour>& sorted) const {
    return robust_prune(
        sorted, options_.degree, options_.alpha, false,
        [&](std::size_t a, std::size_t b) { return distance(sorted[a].id, sorted[b].id); });
  }

  void insert(NodeId node, NodeId entry, Worker& worker);
  void add_edge(NodeId from, NodeId to, Worker& worker);
  void sort_list(NodeId node, Worker& worker);
  template <class Step>
  void in_parallel(std::size_t count, const Progress& progress, Step&& step);

  const float* vectors_;
  std::size_t n_, dim_;
  BuildOptions options_;
  std::size_t capacity_;  // of a list while the graph is built
  std::vector<std::uint16_t> counts_;
  std::vector<NodeId> rows_;
  std::vector<std::mutex> locks_;  // node i's list is under lock i % kLocks; never two at once
};

void Builder::insert(NodeId node, NodeId entry, Worker& worker) {
  const float* sought = vector(node);
  worker.searcher.run(
      entry, options_.search_list, [&](NodeId id) { return kernels::l2(sought, vector(id), dim_); },
      [&](NodeId id) -> const std::vector<NodeId>& {
        const std::lock_guard<std::mutex> guard(lock_of(id));
        const NodeId* row = rows_.data() + id * capacity_;
        worker.list.assign(row, row + counts_[id]);
        return worker.list;
      },
      [&](NodeId id) { prefetch(vector(id), dim_); });
  const std::vector<Neighbour>& found = worker.searcher.expanded();
  const std::vector<std::size_t> kept = prune(found);
  {
    const std::lock_guard<std::mutex> guard(lock_of(node));
    NodeId* row = rows_.data() + node * capacity_;
    for (std::size_t i = 0; i < kept.size(); ++i) row[i] = found[kept[i]].id;
    counts_[node] = static_cast<std::uint16_t>(kept.size());
  }
  for (std::size_t i : kept) add_edge(found[i].id, node, worker);
}

void Builder::add_edge(NodeId from, NodeId to, Worker& worker) {
  const std::lock_guard<std::mutex> guard(lock_of(from));
  NodeId* row = rows_.data() + from * capacity_;
  row[counts_[from]++] = to;
  if (counts_[from] == capacity_) sort_list(from, worker);
}

// Nearest first, and pruned where it holds more than degree.
void Builder::sort_list(NodeId node, Worker& worker) {
  NodeId* row = rows_.data() + node * capacity_;
  std::vector<Neighbour>& candidates = worker.candidates;
  candidates.clear();
  for (std::size_t i = 0; i < counts_[node]; ++i) {
    candidates.push_back({row[i], distance(node, row[i])});
  }
  std::sort(candidates.begin(), candidates.end());
  std::size_t count = 0;
  if (candidates.size() > options_.degree) {
    for (std::size_t i : prune(candidates)) row[count++] = candidates[i].id;
  } else {
    for (const Neighbour& near : candidates) row[count++] = near.id;
  }
  counts_[node] = static_cast<std::uint16_t>(count);
}

// step(i, worker) for i < count, on options.threads threads of which the caller's is one, the only
// one to call progress.
template <class Step>
void Builder::in_parallel(std::size_t count, const Progress& progress, Step&& step) {
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stopped{false};
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto work = [&](bool reports) {
    try {
      Worker worker(n_);
      std::size_t reported = 0;
      while (!stopped.load(std::memory_order_relaxed)) {
        const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) break;
        step(i, worker);
        if (!reports || !progress || i < reported + kReportEvery) continue;
        reported = i;
        if (!progress(i, n_)) throw Error(ErrorKind::closed, "the build was stopped");
      }
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failure_lock);
      if (!failure) failure = std::current_exception();
      stopped = true;
    }
  };
  const std::size_t threads = std::min(options_.threads, count);
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    for (std::size_t t = 1; t < threads; ++t) others.emplace_back(work, false);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started do.
  }
  work(true);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

Graph Builder::build(NodeId entry, const Progress& progress) {
  std::vector<NodeId> order(n_);
  std::iota(order.begin(), order.end(), NodeId{0});
  std::swap(order[0], order[entry]);
  // Not std::shuffle, whose order differs between libraries.
  std::uint64_t state = options_.seed;
  for (std::size_t i = n_ - 1; i > 1; --i) {
    std::swap(order[i], order[1 + splitmix64(state) % i]);
  }
  in_parallel(n_ - 1, progress,
              [&](std::size_t i, Worker& worker) { insert(order[i + 1], entry, worker); });
  in_parallel(n_, {},
              [&](std::size_t i, Worker& worker) { sort_list(static_cast<NodeId>(i), worker); });
  Graph graph;
  graph.degree = options_.degree;
  graph.counts.assign(counts_.begin(), counts_.end());
  for (std::size_t i = 0; i < n_; ++i) {  // in place: two copies would be the build's peak
    std::copy_n(rows_.data() + i * capacity_, counts_[i], rows_.data() + i * graph.degree);
    std::fill(rows_.data() + i * graph.degree + counts_[i], rows_.data() + (i + 1) * graph.degree,
              kNoNode);
  }
  rows_.resize(n_ * graph.degree);
  graph.rows = std::move(rows_);
  return graph;
}

[[noreturn]] void refuse(const std::string& why) {
  throw Error(ErrorKind::bad_input, "graph: " + why);
}

void check(const float* vectors, std::size_t n, std::size_t dim, const BuildOptions& options) {
  if (n >= kNoNode) refuse("more nodes than 32-bit ids");
  if (dim == 0) refuse("vectors of no dimension");
  if (options.degree == 0 || options.degree > 255) refuse("degree must be 1 to 255");
  if (options.search_list == 0) refuse("search_list must be at least 1");
  if (!(options.alpha >= 1.0F) || !std::isfinite(options.alpha)) refuse("alpha must be 1 or more");
  if (!(options.slack >= 1.0F) || options.slack > 8.0F) refuse("slack must be 1 to 8");
  // A NaN has no place in an order, and sorting one is undefined.
  const auto finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(vectors, vectors + n * dim, finite)) {
    refuse("a vector holds a value that is not finite");
  }
}

// Nodes that were not yet reached and are so from `from`.
void mark_reached(const Graph& graph, NodeId from, std::vector<char>& reached) {
  std::vector<NodeId> open{from};
  reached[from] = 1;
  while (!open.empty()) {
    const NodeId node = open.back();
    open.pop_back();
    for (NodeId next : graph.of(node)) {
      if (reached[next]) continue;
      reached[next] = 1;
      open.push_back(next);
    }
  }
}

void append(Graph& graph, NodeId node, NodeId neighbour) {
  graph.rows[node * graph.degree + graph.counts[node]++] = neighbour;
}

}  // namespace

NodeId medoid(const float* vectors, std::size_t n, std::size_t dim) {
  if (n == 0) return kNoNode;
  std::vector<double> sum(dim, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < dim; ++j) sum[j] += vectors[i * dim + j];
  }
  std::vector<float> mean(dim);
  const auto count = static_cast<double>(n);
  for (std::size_t j = 0; j < dim; ++j) mean[j] = static_cast<float>(sum[j] / count);
  Neighbour nearest{0, std::numeric_limits<float>::infinity()};
  for (std::size_t i = 0; i < n; ++i) {
    const Neighbour other{static_cast<NodeId>(i), kernels::l2(mean.data(), vectors + i * dim, dim)};
    if (other < nearest) nearest = other;
  }
  return nearest.id;
}

Graph build_vamana(const float* vectors, std::size_t n, std::size_t dim,
                   const BuildOptions& options, const Progress& progress) {
  check(vectors, n, dim, options);
  Graph graph;
  graph.degree = options.degree;
  if (n == 0) return graph;
  const NodeId entry = medoid(vectors, n, dim);
  graph = Builder(vectors, n, dim, options).build(entry, progress);
  attach_unreachable(graph, entry, options.search_list, [&](NodeId a, NodeId b) {
    return kernels::l2(vectors + a * dim, vectors + b * dim, dim);
  });
  if (progress && !progress(n, n)) throw Error(ErrorKind::closed, "the build was stopped");
  return graph;
}

std::size_t attach_unreachable(Graph& graph, NodeId entry, std::size_t search_list,
                               const std::function<float(NodeId, NodeId)>& distance) {
  if (graph.size() == 0) return 0;
  if (entry >= graph.size()) refuse("the entry is no node of it");
  std::vector<char> reached(graph.size(), 0);
  mark_reached(graph, entry, reached);
  std::size_t attached = 0;
  std::optional<Searcher> searcher;
  for (NodeId node = 0; node < graph.size(); ++node) {
    if (reached[node]) continue;
    if (!searcher) searcher.emplace(graph.size());
    searcher->run(
        entry, search_list, [&](NodeId id) { return distance(node, id); },
        [&](NodeId id) { return graph.of(id); }, [](NodeId) {});
    const std::vector<Neighbour>& found = searcher->expanded();
    const auto room = std::find_if(found.begin(), found.end(), [&](const Neighbour& near) {
      return graph.counts[near.id] < graph.degree;
    });
    if (room != found.end()) {
      append(graph, room->id, node);
    } else {
      // Between the nearest one and that one's neighbour nearest to the node: whatever was reached
      // over this edge still is. No path to a reached node leads over the lost edge of `node`.
      NodeId* row = graph.rows.data() + found.front().id * graph.degree;
      NodeId* edge = std::min_element(row, row + graph.degree, [&](NodeId a, NodeId b) {
        return distance(node, a) < distance(node, b);
      });
      const NodeId beyond = std::exchange(*edge, node);
      const std::span<const NodeId> own = graph.of(node);
      if (std::find(own.begin(), own.end(), beyond) == own.end()) {
        if (graph.counts[node] == graph.degree) --graph.counts[node];
        append(graph, node, beyond);
      }
    }
    mark_reached(graph, node, reached);
    ++attached;
  }
  return attached;
}

std::vector<Neighbour> greedy_search(const Graph& graph, const float* vectors, std::size_t dim,
                                     const float* query, NodeId entry, std::size_t search_list) {
  if (graph.size() == 0) return {};
  Searcher searcher(graph.size());
  searcher.run(
      entry, search_list, [&](NodeId id) { return kernels::l2(query, vectors + id * dim, dim); },
      [&](NodeId id) { return graph.of(id); },
      [&](NodeId id) { prefetch(vectors + id * dim, dim); });
  std::vector<Neighbour> found = std::move(searcher.expanded());
  found.resize(std::min(found.size(), search_list));
  return found;
}

}  // namespace navis
