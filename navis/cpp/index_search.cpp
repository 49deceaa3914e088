// Search: many traversals over several threads, and what to do when the graph gives too little.
#include <algorithm>
#include <chrono>

#include "filter.hpp"
#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

namespace {

using Clock = std::chrono::steady_clock;

struct Job {
  std::size_t query;
  std::size_t list;
  bool scan;
  Clock::time_point begun;
};

}  // namespace

void Index::search(const float* queries, std::size_t n, const SearchOptions& options,
                   std::uint64_t* ids, float* distances, float* micros) {
  const Use use(*this, false);
  Store& s = *store_;
  warm();
  Rerank rerank = options.rerank;
  if (rerank.margin < 0) rerank.margin = margin();
  const auto& filters = options.filters;
  if (filters.size() > 1 && filters.size() != n) {
    throw Error(ErrorKind::bad_input, std::to_string(filters.size()) + " filters for " +
                                          std::to_string(n) + " queries: give one, or one each");
  }
  // One for all, made now; or one each, made by the thread that has the query.
  std::vector<std::unique_ptr<FilterPlan>> plans(filters.size());
  auto make_plan = [&](std::size_t i, std::size_t shared) {
    plans[i] = std::make_unique<FilterPlan>(s, filters[i], options, shared);
  };
  if (filters.size() == 1) make_plan(0, n);

  std::atomic<std::size_t> next{0};
  std::atomic<bool> cut{false};
  auto work = [&] {
    auto lease = lane();
    std::vector<float> working(s.space.dim());
    std::vector<Job> jobs(8);
    std::vector<Job> again;  // found fewer than k: once more with a longer list, or by scanning
    auto begin = [&](Traversal& t, const Job& job) {
      jobs[t.slot] = job;
      s.space.query(queries + job.query * s.options.dim, working.data());
      const FilterPlan* plan =
          plans.empty() ? nullptr : plans[plans.size() > 1 ? job.query : 0].get();
      t.begin(working.data(), options.k, job.list, rerank, Traversal::Purpose::search, plan,
              job.scan);
    };
    lease->run(
        s.session.in_flight,
        [&](Traversal& t) {
          if (!again.empty()) {
            const Job job = again.back();
            again.pop_back();
            begin(t, job);
            return true;
          }
          const std::size_t i = next.fetch_add(1);
          if (i >= n) return false;
          if (closed_) {
            cut = true;
            return false;
          }
          if (plans.size() > 1) make_plan(i, 1);
          const bool scan = !plans.empty() && plans[plans.size() > 1 ? i : 0]->scans();
          if (scan) s.counters.filter_scans.fetch_add(1, std::memory_order_relaxed);
          begin(t, {i, options.list, scan, Clock::now()});
          return true;
        },
        [&](Traversal& t) {
          Job job = jobs[t.slot];
          std::uint64_t* found = ids + job.query * options.k;
          float* far = distances + job.query * options.k;
          std::size_t count = 0;
          // Asked once more: what was found may have been deleted or replaced meanwhile.
          for (const Neighbour& node : t.nearest()) {
            if (count == options.k) break;
            if (!t.admits(node.id)) continue;
            found[count] = s.external[node.id];
            far[count++] = s.space.distance(node.distance, t.query().data());
          }
          const std::size_t wanted =
              plans.empty() ? std::min<std::size_t>(options.k, s.live.load()) : options.k;
          const bool overtaken = count < std::min<std::size_t>(options.k, t.nearest().size());
          if ((count < wanted || !t.conclusive()) && !job.scan) {
            // Deletes may cut a node off until compaction. From some length on a scan costs less.
            job.list *= 2;
            job.scan = !plans.empty() || job.list > s.rows.load() / 64;
            if (job.scan) job.list = options.list;
            if (job.scan) s.counters.exhaustive_searches.fetch_add(1, std::memory_order_relaxed);
            again.push_back(job);
            return;
          }
          if (count < wanted && overtaken) {  // by deletes, even while it scanned
            again.push_back(job);
            return;
          }
          std::fill(found + count, found + options.k, UINT64_MAX);
          std::fill(far + count, far + options.k, std::numeric_limits<float>::infinity());
          if (micros) {
            micros[job.query] =
                std::chrono::duration<float, std::micro>(Clock::now() - job.begun).count();
          }
          if (plans.size() > 1) plans[job.query].reset();
          s.counters.searches.fetch_add(1, std::memory_order_relaxed);
        });
  };
  run_threads(std::min<std::size_t>(options.threads, n), work);
  if (cut) require_open(false);
}

}  // namespace navis
