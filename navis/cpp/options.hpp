// What an index is (kept in it), how it is opened, how it is searched, and what it counts.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "shorthaul/uring.hpp"
#include "types.hpp"
#include "wal.hpp"

namespace navis {

// packed: vector and edge list in one record (DiskANN, OdinANN). selective: pages of edge lists and
// pages of vectors, read independently (NAVIS).
enum class Layout : std::uint8_t { packed, selective };
// none: traversals start at the medoid. fixed: a sample made at build. dynamic: kept up with
// inserts.
enum class EntranceMode : std::uint8_t { none, fixed, dynamic };

struct IndexOptions {
  std::uint32_t dim = 0;
  DataType type = DataType::float32;
  Metric metric = Metric::l2;
  Layout layout = Layout::selective;
  std::uint32_t degree = 32;        // R, at most 255
  std::uint32_t insert_list = 128;  // L of position seeking
  float alpha = 1.1F;               // on distances; 1.2 on squared ones, as others count
  float radius = 0;                 // bound of vector lengths, inner product only
  float entrance_share = 0.01F;     // entrance nodes per node
  float margin = 0.8F;              // of re-ranking, see Rerank; calibrated after building
};

struct OpenOptions {
  bool readonly = false;
  std::uint64_t memory_budget = 0;  // bytes; 0: no limit
  Durability durability = Durability::sync;
  double window_s = 0.05;
  shorthaul::uring::Backend io = shorthaul::uring::Backend::automatic;
  bool direct = true;
  CachePolicy cache = CachePolicy::lfu;
  EntranceMode entrance = EntranceMode::dynamic;
  std::uint32_t beam = 4;              // edge lists expanded per step
  std::uint32_t in_flight = 4;         // traversals per thread
  bool share_pages = true;             // lists of a page in hand need no read
  bool rerank = true;                  // read vectors until the top k is stable; false: all of them
  std::uint64_t pending_bytes = 0;     // changed lists held before they are written; 0: by budget
  std::uint64_t checkpoint_bytes = 0;  // of log after which a checkpoint is taken; 0: by size
  // Of page files, checkpoints and compaction, bytes per second; 0: no limit. See IoBudget.
  std::uint64_t write_rate = std::uint64_t{256} << 20U;
};

// How far convergence-aware re-ranking looks before it calls the top k stable.
struct Rerank {
  std::uint32_t group = 8;  // vectors read together
  // The next candidate cannot enter the top k any more once its PQ distance, times this, is beyond
  // the k-th exact distance: the share by which PQ overrates a distance, calibrated on queries.
  float margin = -1;                // negative: the index's own
  std::uint32_t most = UINT32_MAX;  // vectors read, however near the others may be
};

// Which vectors a search may give: those that have a label of any_of, all labels of all_of, none of
// none_of, and a value in between (both ends are in it). An empty condition is none.
struct Filter {
  std::vector<std::uint32_t> any_of, all_of, none_of;
  std::optional<std::pair<double, double>> between;

  bool names_labels() const { return !any_of.empty() || !all_of.empty() || !none_of.empty(); }
  bool empty() const { return !names_labels() && !between; }
};

// How matching vectors are found: by walking the graph first, by looking at the code of every one
// of them, or by whichever is estimated to cost less.
enum class FilterMethod : std::uint8_t { automatic, walk, scan };

struct SearchOptions {
  std::uint32_t k = 10;
  std::uint32_t list = 40;  // L
  std::uint32_t threads = 1;
  Rerank rerank;
  std::span<const Filter> filters;  // none, one for all queries, or one each
  FilterMethod filter_method = FilterMethod::automatic;
};

// Monotone counters of an open index; requests and bytes are what was asked of the files.
struct Counters {
  std::atomic<std::uint64_t> searches{0}, inserts{0}, deletes{0};
  // Searches that looked at every code: because walking had found too few, or by a filter's plan.
  std::atomic<std::uint64_t> exhaustive_searches{0}, filter_scans{0};
  std::atomic<std::uint64_t> search_expansions{0}, seek_expansions{0};
  // Edge units (packed: record units) and vector pages read, by purpose.
  std::atomic<std::uint64_t> search_edge_reads{0}, search_vector_reads{0}, search_read_bytes{0};
  std::atomic<std::uint64_t> seek_edge_reads{0}, seek_vector_reads{0}, seek_read_bytes{0};
  std::atomic<std::uint64_t> search_vectors{0}, seek_vectors{0};  // vectors looked at exactly
  std::atomic<std::uint64_t> search_shared{0}, seek_shared{0};    // lists found on a page in hand
  std::atomic<std::uint64_t> search_cached{0}, seek_cached{0};    // lists found in memory
  std::atomic<std::uint64_t> flush_edge_pages{0}, flush_edge_writes{0}, flush_lists{0};
  std::atomic<std::uint64_t> flush_vector_pages{0}, flush_vector_writes{0}, flush_reads{0};
  std::atomic<std::uint64_t> absorbed_units{0}, absorbed_lists{0}, cleaned_units{0},
      stale_retries{0};
  std::atomic<std::uint64_t> checkpoints{0}, checkpoint_bytes{0};
  std::atomic<std::uint64_t> entrance_promotions{0}, entrance_evictions{0}, entrance_reads{0};

  // f(name, counter) for each of them.
  template <class F>
  void each(F&& f) const {
    // clang-format off
    f("searches", searches); f("inserts", inserts); f("deletes", deletes);
    f("exhaustive_searches", exhaustive_searches); f("search_expansions", search_expansions);
    f("seek_expansions", seek_expansions); f("search_edge_reads", search_edge_reads);
    f("search_vector_reads", search_vector_reads); f("search_read_bytes", search_read_bytes);
    f("seek_edge_reads", seek_edge_reads); f("seek_vector_reads", seek_vector_reads);
    f("seek_read_bytes", seek_read_bytes); f("search_vectors", search_vectors);
    f("seek_vectors", seek_vectors); f("search_shared", search_shared);
    f("seek_shared", seek_shared); f("search_cached", search_cached);
    f("seek_cached", seek_cached); f("flush_edge_pages", flush_edge_pages);
    f("flush_edge_writes", flush_edge_writes); f("flush_lists", flush_lists);
    f("flush_vector_pages", flush_vector_pages); f("flush_vector_writes", flush_vector_writes);
    f("flush_reads", flush_reads); f("absorbed_units", absorbed_units);
    f("absorbed_lists", absorbed_lists); f("cleaned_units", cleaned_units);
    f("stale_retries", stale_retries); f("checkpoints", checkpoints);
    f("checkpoint_bytes", checkpoint_bytes); f("entrance_promotions", entrance_promotions);
    f("entrance_evictions", entrance_evictions); f("entrance_reads", entrance_reads);
    // clang-format on
  }
};

}  // namespace navis
