// One traversal of the graph on disk: a search, or the position seeking of an insert. A state
// machine: advance() computes until it needs bytes, the caller reads them, and so on. What it
// finds depends on the graph and its parameters only, never on the order of completions or on
// what a cache holds. A search of a session without a cache also goes on, when its list has been
// walked, from the candidates behind it whose edges are in pages that it has read: no read more.
//
// With a filter, candidates that match and others are kept apart: the others are walked through as
// long as they are nearer than the worst of the matching ones, and their vectors are not looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "filter.hpp"
#include "store.hpp"

namespace navis {

// Aligned buffers of one size, handed out and taken back.
class BufferPool {
 public:
  explicit BufferPool(std::size_t bytes) : bytes_(bytes) {}
  std::byte* take();
  void give(std::byte* buffer) { free_.push_back(buffer); }
  std::size_t bytes() const { return bytes_; }
  std::size_t memory_bytes() const { return slabs_.size() * kPerSlab * bytes_; }

 private:
  static constexpr std::size_t kPerSlab = 16;
  std::size_t bytes_;
  std::vector<shorthaul::uring::Buffer> slabs_;
  std::vector<std::byte*> free_;
};

// Ids met, cleared in one go.
class VisitedSet {
 public:
  void clear();
  bool insert(NodeId id);  // true when it was not there

 private:
  std::vector<NodeId> table_ = std::vector<NodeId>(4096, kNoNode);
  std::size_t size_ = 0;
};

struct ReadRequest {
  const shorthaul::uring::File* file;
  std::uint64_t offset;
  std::size_t bytes;
  std::byte* into;
};

// A node whose edge list has been followed.
struct Expanded {
  Neighbour node;                     // PQ distance
  std::uint32_t location;             // when its list was read
  std::uint32_t list_at, list_count;  // in Traversal::arena(); position seeking only
};
// A node whose vector has been looked at.
struct Exact {
  Neighbour node;               // true squared distance
  std::uint32_t vector_at = 0;  // row in Traversal::vectors(); position seeking only
  std::uint32_t raw_at = 0;     // the same in raw_vectors(); packed layout only
};

class Traversal {
 public:
  enum class Purpose : std::uint8_t { search, seek };

  Traversal(Store& store, BufferPool& units, BufferPool& vectors);
  ~Traversal() { release(); }
  Traversal(const Traversal&) = delete;
  Traversal& operator=(const Traversal&) = delete;

  // `query` is in working space (copied). k: how many nearest are to be exact (0: by codes alone,
  // no vector is read); list: L. `filter`: of searches, kept until release(). `scan`: instead of
  // walking the graph, the list is made of the nearest by code of all nodes that match, or of all
  // live ones.
  void begin(const float* query, std::size_t k, std::size_t list, const Rerank& rerank,
             Purpose purpose, const FilterPlan* filter = nullptr, bool scan = false);
  // True when finished. Otherwise the reads of requests() are to be done before the next call.
  bool advance();
  const std::vector<ReadRequest>& requests() const { return requests_; }
  // Gives buffers and the epoch back; what was found stays.
  void release();

  // Whether a node may be a result now.
  bool admits(NodeId id) const { return filter_ ? filter_->matches(id) : store_.is_live(id); }
  // False when a walk under a filter was given up: too many nodes around the query do not match.
  bool conclusive() const { return conclusive_; }
  // The nearest live nodes with exact squared distances, ascending, at most k.
  const std::vector<Neighbour>& nearest() const { return nearest_; }
  const std::vector<Expanded>& expanded() const { return expanded_; }
  const std::vector<Exact>& exact() const { return exact_; }
  const std::vector<Entrance::Found>& entrance() const { return entrance_; }
  const std::vector<float>& query() const { return query_; }
  const std::vector<float>& table() const { return table_; }  // quantized().pq.table(query())
  const Quantized& quantized() const { return *quantized_; }
  std::span<const NodeId> list(const Expanded& e) const {
    return {arena_.data() + e.list_at, e.list_count};
  }
  const float* vector(const Exact& e) const {
    return vectors_.data() + std::size_t{e.vector_at} * store_.space.dim();
  }
  const std::byte* raw(const Exact& e) const {
    return raws_.data() + std::size_t{e.raw_at} * store_.space.raw_bytes();
  }
  // Pages of edge lists in hand, all of a position seeking's, until release().
  const std::unordered_map<std::uint32_t, std::byte*>& held_units() const { return units_; }
  std::size_t slot = 0;  // the caller's

 private:
  struct Candidate {
    Neighbour node;
    bool expanded = false, exact = false;
  };
  struct Step {
    NodeId id;
    float distance;
    std::uint32_t location;
    bool from_arena = false;  // else from units_[unit]
    std::uint32_t list_at = 0, list_count = 0;
    std::byte* unit = nullptr;
  };
  struct VectorStep {
    NodeId id;
    const std::byte* raw;
  };

  // Candidates in ascending order, at most `limit`; of these the first `walked` are expanded, and
  // those before `first` have been.
  struct Pool {
    std::vector<Candidate> candidates;
    std::size_t limit = 0, walked = 0, first = 0;
    float lost = 0;  // the nearest there was no room for; those expanded do not count

    void clear(std::size_t most, std::size_t most_walked);
    bool takes(const Neighbour& node) const {
      return candidates.size() < limit || (limit > 0 && node < candidates.back().node);
    }
    void add(const Neighbour& node);
    // The nearest not yet expanded; null when there is none.
    Candidate* next();
  };

  std::size_t beyond() const;
  void enter();
  void scan();
  bool next_batch();
  Candidate* next_candidate();
  Candidate* in_hand();
  void resolve(Step& step);
  void arrived();
  void expand(const Step& step);
  void meet(std::span<const NodeId> ids);
  bool wants_vector(const Candidate& c, std::size_t queued) const;
  bool queue_vectors();
  void queue_vector(NodeId id);
  void look_at(NodeId id, const std::byte* raw);
  void count(std::atomic<std::uint64_t> Counters::* search,
             std::atomic<std::uint64_t> Counters::* seek, std::uint64_t by = 1) {
    (store_.counters.*(purpose_ == Purpose::search ? search : seek))
        .fetch_add(by, std::memory_order_relaxed);
  }

  Store& store_;
  BufferPool& unit_pool_;
  BufferPool& vector_pool_;
  Epochs::Guard guard_;
  std::shared_ptr<Quantized> quantized_;
  Purpose purpose_ = Purpose::search;
  std::size_t k_ = 0, list_ = 0;
  std::size_t changed_ = 0;  // vectors looked at when the nearest last changed
  Rerank rerank_;

  std::vector<float> query_, table_;
  const FilterPlan* filter_ = nullptr;
  bool scan_ = false, settled_ = false, conclusive_ = true;
  Pool pool_;    // that may be results
  Pool others_;  // that the filter does not admit
  VisitedSet visited_;
  std::vector<Entrance::Found> entrance_;
  std::vector<Expanded> expanded_;
  std::vector<NodeId> arena_;
  std::vector<Exact> exact_;
  std::vector<float> vectors_;
  std::vector<std::byte> raws_;
  std::vector<Neighbour> nearest_;

  std::vector<Step> batch_;
  std::vector<VectorStep> vector_batch_;
  std::vector<ReadRequest> requests_;
  std::vector<std::pair<std::uint32_t, std::byte*>> unchecked_;   // units just read
  std::unordered_map<std::uint32_t, std::byte*> units_;           // unit -> bytes in hand
  std::unordered_map<std::uint64_t, std::byte*> vector_pages_;    // offset -> bytes in hand
  std::deque<std::pair<std::uint32_t, std::byte*>> taken_units_;  // oldest first
  std::vector<std::byte*> taken_vectors_;
  std::vector<std::vector<std::byte>> raw_copies_;  // of vectors still pending

  std::vector<NodeId> fresh_;
  std::vector<float> distances_;
  std::vector<const std::uint8_t*> codes_;
  std::vector<float> working_;
  std::vector<std::byte> reread_;
};

}  // namespace navis
