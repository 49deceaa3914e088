// What an index is (kept in it), how it is opened, how it is searched, and what it counts.
#pragma once

#include <atomic>
#include <cstdint>

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
  float alpha = 1.1F;  // on distances; 1.2 on squared ones, as others count
  float radius = 0;              // bound of vector lengths, inner product only
  float entrance_share = 0.01F;  // entrance nodes per node
  float margin = 0.8F;           // of re-ranking, see Rerank; calibrated after building
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
};

// How far convergence-aware re-ranking looks before it calls the top k stable.
struct Rerank {
  std::uint32_t group = 8;  // vectors read together
  // The next candidate cannot enter the top k any more once its PQ distance, times this, is beyond
  // the k-th exact distance: the share by which PQ overrates a distance, calibrated on queries.
  float margin = -1;  // negative: the index's own
};

struct SearchOptions {
  std::uint32_t k = 10;
  std::uint32_t list = 40;  // L
  std::uint32_t threads = 1;
  Rerank rerank;
};

// Monotone counters of an open index; requests and bytes are what was asked of the files.
struct Counters {
  std::atomic<std::uint64_t> searches{0}, inserts{0}, deletes{0}, exhaustive_searches{0};
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
};

}  // namespace navis
