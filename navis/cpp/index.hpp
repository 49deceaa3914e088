// An index on disk: search, insert, delete, and what keeps them durable. Any thread may call any
// method at any time; searches take no lock that a writer holds for longer than a look-up.
#pragma once

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "bits.hpp"
#include "id_map.hpp"
#include "lane.hpp"
#include "store.hpp"
#include "vamana.hpp"
#include "wal.hpp"

namespace navis {

class CodeRows;

// Vectors to build from: `raw` is n rows of the index's type; `ids` n external ids.
struct BuildData {
  const std::byte* raw = nullptr;
  const std::uint64_t* ids = nullptr;
  std::size_t n = 0;
  // Where the rows are in a file, if they are: read from there instead of through `raw`, whose
  // mapped pages would count as memory in use.
  std::filesystem::path file = {};
  std::uint64_t offset = 0;
  AttributeRows attributes = {};
};

struct Stats {
  std::size_t live = 0, deleted = 0, rows = 0;
  std::size_t unused = 0;  // rows that compaction has freed
  std::size_t units = 0, units_used = 0, units_minimal = 0, unit_bytes = 0, per_unit = 0;
  std::size_t pending_lists = 0, pending_vectors = 0;
  std::size_t entrance_nodes = 0, entrance_evictions = 0;
  std::size_t cache_entries = 0, cache_capacity = 0;
  std::size_t labels = 0, attribute_bytes = 0;
  std::size_t table_bytes = 0, code_bytes = 0, entrance_bytes = 0, cache_bytes = 0;
  std::size_t lane_bytes = 0, pending_bytes = 0, id_map_bytes = 0;
  std::uint64_t next_lsn = 0, durable_lsn = 0, wal_bytes = 0;
  std::uint64_t replayed_records = 0, dropped_wal_bytes = 0;
  std::uint64_t files_bytes = 0;
  std::uint64_t budget_bytes = 0;  // written, or read by compaction, within the writers' budget
  double budget_wait_s = 0;        // and how long writers have waited for it, all together
  WalCounters wal;
  CacheCounters cache;
  bool uring = false;
  std::string io_reason;

  // f(name, value) for each of the plain ones.
  template <class F>
  void each(F&& f) const {
    // clang-format off
    f("live", live); f("deleted", deleted); f("rows", rows); f("unused", unused); f("units", units);
    f("units_used", units_used); f("units_minimal", units_minimal); f("unit_bytes", unit_bytes);
    f("per_unit", per_unit); f("pending_lists", pending_lists);
    f("pending_vectors", pending_vectors); f("entrance_nodes", entrance_nodes);
    f("entrance_evictions", entrance_evictions); f("cache_entries", cache_entries);
    f("cache_capacity", cache_capacity); f("table_bytes", table_bytes);
    f("code_bytes", code_bytes); f("entrance_bytes", entrance_bytes);
    f("cache_bytes", cache_bytes); f("lane_bytes", lane_bytes);
    f("labels", labels); f("attribute_bytes", attribute_bytes);
    f("pending_bytes", pending_bytes); f("id_map_bytes", id_map_bytes); f("next_lsn", next_lsn);
    f("durable_lsn", durable_lsn); f("wal_bytes", wal_bytes);
    f("replayed_records", replayed_records); f("dropped_wal_bytes", dropped_wal_bytes);
    f("files_bytes", files_bytes); f("budget_bytes", budget_bytes);
    f("budget_wait_s", budget_wait_s); f("uring", uring); f("io_reason", io_reason);
    // clang-format on
  }
};

struct VerifyReport {
  std::size_t units = 0, lists = 0, vectors = 0, edges = 0;
  std::vector<std::string> faults;  // one line each, at most 100
  // Nothing is wrong with these, but searches find them less well: compaction mends it.
  std::size_t unreachable = 0;           // live nodes that no path leads to
  std::size_t entrance_unreachable = 0;  // nodes of the entrance graph, within it
  std::size_t dead_edges = 0;            // to deleted nodes

  template <class F>
  void each(F&& f) const {
    // clang-format off
    f("units", units); f("lists", lists); f("vectors", vectors); f("edges", edges);
    f("faults", faults); f("unreachable", unreachable);
    f("entrance_unreachable", entrance_unreachable); f("dead_edges", dead_edges);
    // clang-format on
  }
};

struct RepairReport {
  std::size_t lists = 0;            // made anew
  std::vector<std::uint64_t> lost;  // ids whose vector is damaged: to be deleted, then inserted

  template <class F>
  void each(F&& f) const {
    f("lists", lists);
    f("lost", lost);
  }
};

class Index {
 public:
  // Makes an index of these vectors (n may be 0) with this quantizer. The folder must not exist or
  // be empty; on failure nothing is left in it.
  static void build(const std::filesystem::path& folder, const IndexOptions& options,
                    const BuildData& data, const ProductQuantizer& quantizer,
                    const BuildOptions& build, const Progress& progress);
  // The same without holding the vectors: `centres` (rows of working dimension) say how to cut the
  // set into overlapping clusters of at most `largest` vectors, which are built one by one.
  static void build_out_of_core(const std::filesystem::path& folder, const IndexOptions& options,
                                const BuildData& data, const ProductQuantizer& quantizer,
                                std::span<const float> centres, std::size_t largest,
                                const BuildOptions& how, const Progress& progress);
  // The same with a graph made elsewhere (import), kept as it is: row i of it is row i of the data,
  // `entry` where searches without an entrance graph begin. Error(bad_input) where an edge leads
  // nowhere, to its own node or twice to another.
  static void build_from_graph(const std::filesystem::path& folder, const IndexOptions& options,
                               const BuildData& data, const Graph& graph, NodeId entry,
                               const ProductQuantizer& quantizer, std::uint64_t seed,
                               const Progress& progress);
  // What the builds have in common: writes the files. `stored(i)` gives the raw bytes of vector i,
  // in any order.
  static void write(const std::filesystem::path& folder, const IndexOptions& options,
                    const Graph& graph, const std::function<const std::byte*(std::size_t)>& stored,
                    const std::uint64_t* ids, const ProductQuantizer& quantizer, NodeId medoid,
                    std::uint64_t seed, const AttributeRows& attributes = {});

  Index(const std::filesystem::path& folder, const OpenOptions& session);
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  // For each of n queries (dim floats each) the k nearest: ids (UINT64_MAX where fewer than k
  // vectors are there or match) and distances as WorkingSpace::distance gives them, ascending.
  // `micros`, if given, receives each query's latency.
  void search(const float* queries, std::size_t n, const SearchOptions& options, std::uint64_t* ids,
              float* distances, float* micros = nullptr);
  // Inserts, or replaces where the id is known. Durable as the session promises when it returns.
  // A replaced id loses the attributes it had. Gives the number of replaced ids.
  std::size_t insert(const std::uint64_t* ids, const std::byte* raw, std::size_t n,
                     std::size_t threads, const AttributeRows& attributes = {});
  // Gives the number of ids that were there; they are invisible when it returns.
  std::size_t remove(const std::uint64_t* ids, std::size_t n);
  bool contains(std::uint64_t id);
  // Vectors that are there, and nodes made for vectors, deleted ones included: counters, for which
  // nobody is waited for.
  std::size_t live() const;
  std::size_t rows() const;
  // The stored vectors of these ids (raw rows); Error(bad_input) naming the first unknown id.
  void get(const std::uint64_t* ids, std::size_t n, std::byte* raw);
  std::vector<std::uint64_t> ids();
  // The attributes of these ids: labels, ascending, one set after the other, and how many each has.
  void attributes(const std::uint64_t* ids, std::size_t n, std::vector<std::uint32_t>& labels,
                  std::vector<std::uint64_t>& counts, double* values);

  // The margin of re-ranking that searches use unless they say otherwise; kept by a checkpoint.
  float margin() const { return margin_.load(std::memory_order_relaxed); }
  void set_margin(float margin);

  // Everything acknowledged survives the loss of power.
  void flush();
  // The log becomes empty: all is on its pages and in state.nav.
  void checkpoint();
  // Encodes every vector anew, with a quantizer trained on what is in the index now.
  void retrain(const ProductQuantizer& quantizer);
  // Mends what deletes have left, gives their space back and rewrites the lists in the order of the
  // graph, beside searches and changes. `progress` returning false ends it with Error(closed); the
  // index is whole at any time, and the next call goes on from what has been done. `window`: lists
  // rewritten together; 0: by the memory budget.
  void compact(const Progress& progress = {}, std::size_t window = 0);
  // A copy of the index as it is at one moment, in a new folder, beside searches and changes.
  // Nothing is left of it on failure. `progress` must not call the index.
  void snapshot(const std::filesystem::path& folder, const Progress& progress = {});
  // Makes lists on damaged pages anew.
  RepairReport repair();
  // For each query the ids whose lists a search (or the seeking of an insert) with this list
  // length follows, in order.
  std::vector<std::vector<std::uint64_t>> trace(const float* queries, std::size_t n,
                                                std::size_t list, bool seek);
  // The ids these ids have edges to; an unknown one is Error(bad_input).
  std::vector<std::vector<std::uint64_t>> neighbours(const std::uint64_t* ids, std::size_t n);
  // Reads everything and compares.
  VerifyReport verify();
  Stats stats();
  // Ends what other threads have under way, at the next vector, query or portion, with
  // Error(closed), waits for that, and makes all that was done durable. Not from a callback.
  void close();

  const IndexOptions& options() const { return store_->options; }
  Store& store() { return *store_; }

 private:
  friend class Compaction;
  struct Plan;  // an insert between its search and its commit
  class LaneLease;

  // A call under way, for which close() waits.
  class Use {
   public:
    Use(Index& index, bool writing) : index_(index) {
      index_.users_.fetch_add(1);
      try {
        index_.require_open(writing);
      } catch (...) {
        leave();
        throw;
      }
    }
    ~Use() { leave(); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    void leave() {
      if (index_.users_.fetch_sub(1) == 1) index_.users_.notify_all();
    }
    Index& index_;
  };

  LaneLease lane();
  NodeId node_of(std::uint64_t id);
  NodeId node_of_locked(std::uint64_t id) const;  // under commit_
  void require_open(bool writing) const;

  // index_insert.cpp
  void plan_insert(Traversal& t, const std::byte* raw, Plan& plan);
  bool commit_insert(Traversal& t, std::uint64_t id, const std::byte* raw, Plan& plan,
                     std::span<const std::uint32_t> labels, double value);
  bool current_list(Traversal& t, NodeId id, std::vector<NodeId>& list,
                    std::vector<std::byte>& vector);
  std::size_t victim(CodeRows& rows, NodeId owner, std::span<const NodeId> list);
  void change_list(NodeId id, std::vector<NodeId> list, std::vector<std::byte> vector,
                   std::uint64_t lsn);
  void absorb(Traversal& t);
  void maintain();

  // index_delete.cpp
  void patch_around(const std::vector<NodeId>& gone);

  // index_flush.cpp
  void flush_lists(Lane& lane, bool commit_held = false);
  std::vector<std::size_t> packing_order(const std::vector<ListCopy>& lists) const;
  void place_lists(Lane& lane, const std::vector<ListCopy>& lists,
                   const std::vector<std::size_t>& order, bool lowest, bool commit_held);
  bool clean_units(Lane& lane);
  std::uint64_t take_checkpoint();
  void finish_checkpoint(std::uint64_t begin_lsn, std::mutex& commit,
                         const std::shared_ptr<Quantized>& retrained);

  // index_vectors.cpp
  void flush_vectors(Lane& lane, bool all);
  void write_vectors(Lane& lane, std::span<const std::uint32_t> slots,
                     const std::function<void(std::size_t, std::byte*)>& fill);
  std::size_t move_vectors(Lane& lane, std::vector<NodeId> nodes, std::size_t limit);

  // index_compact.cpp
  void release_node(NodeId id, std::vector<std::uint32_t>& slots);
  void log_lists(std::vector<ListCopy> changes);

  // index_open.cpp
  void take_stock();
  std::uint64_t load_state();
  void replay(std::uint64_t from_lsn);
  void apply(std::uint64_t lsn, std::uint32_t type, std::span<const std::byte> payload);

  // index_memory.cpp
  struct Needed {
    std::uint64_t tables = 0, buffers = 0;  // bytes
    std::uint64_t sum() const { return tables + buffers; }
  };
  Needed needed_memory() const;
  void plan_memory();
  void keep_within_budget();
  void require_budget();
  void warm();

  std::unique_ptr<Store> store_;
  std::unique_ptr<Wal> wal_;
  IdMap id_map_;
  int lock_fd_ = -1;
  std::atomic<bool> closed_{false};
  std::atomic<std::uint32_t> users_{0};

  std::mutex compact_;     // one compaction at a time; before all others
  std::mutex commit_;      // the in-memory part of every change
  std::mutex flush_;       // one flush at a time; before commit_
  std::mutex checkpoint_;  // one checkpoint at a time; before flush_
  std::mutex lanes_mutex_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::size_t lane_bytes_ = 0;

  std::atomic<float> margin_{0.8F};
  std::once_flag warmed_;

  Bits free_nodes_;            // rows whose state is free; under commit_
  std::deque<NodeId> recent_;  // committed last; a search under way may have missed them
  std::mutex recent_mutex_;
  std::size_t pending_limit_ = 0;  // lists
  std::uint64_t pending_bytes_ = 0;
  std::mutex plan_;  // before commit_
  std::atomic<NodeId> planned_rows_{0};
  std::atomic<bool> outgrown_{false};  // there is no room for more vectors in the budget
  std::uint64_t checkpoint_bytes_ = 0, state_bytes_ = 0;
  std::uint64_t replayed_ = 0, dropped_ = 0, next_lsn_ = 1;
};

}  // namespace navis
