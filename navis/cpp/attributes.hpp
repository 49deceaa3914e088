// What vectors carry for filters: a set of labels, and one number (price, time, ...). Kept by node;
// a search reads them without a lock for every neighbour it meets. An index that is given none
// spends no memory on them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "bytes.hpp"
#include "chunked.hpp"
#include "epoch.hpp"
#include "types.hpp"

namespace navis {

inline constexpr double kNoValue = std::numeric_limits<double>::quiet_NaN();
inline constexpr std::size_t kMaxLabels = 4096;  // of one vector

// Attributes of n vectors on their way in: vector i has the labels [label_at[i], label_at[i + 1])
// of `labels`, in any order, and values[i], which may be kNoValue. Null: none.
struct AttributeRows {
  const std::uint64_t* label_at = nullptr;
  const std::uint32_t* labels = nullptr;
  const double* values = nullptr;

  std::span<const std::uint32_t> labels_of(std::size_t i) const {
    if (!label_at) return {};
    return {labels + label_at[i], labels + label_at[i + 1]};
  }
  double value_of(std::size_t i) const { return values ? values[i] : kNoValue; }
  // Throws Error(bad_input) naming the first of n vectors that has more than kMaxLabels.
  void check(std::size_t n) const;
};

// Which nodes have a label, and how many; short locks.
class LabelNodes {
 public:
  // A label of more nodes than this is only counted: no filter by it is so selective that its
  // nodes are worth a list, and lists stay small enough to insert into.
  static constexpr std::size_t kListed = std::size_t{1} << 17U;

  void add(std::uint32_t label, NodeId node);
  void remove(std::uint32_t label, NodeId node);
  std::size_t count(std::uint32_t label) const;
  // Appends the nodes of a label, ascending; false where they are only counted.
  bool nodes(std::uint32_t label, std::vector<NodeId>& out) const;
  std::size_t labels() const { return labels_.load(std::memory_order_relaxed); }
  std::size_t memory_bytes() const;

 private:
  struct Entry {
    std::size_t count = 0;
    bool listed = true;
    std::vector<NodeId> nodes;  // ascending
  };
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<std::uint32_t, Entry> entries;
  };
  static constexpr std::size_t kShards = 64;
  Shard& of(std::uint32_t label) { return shards_[label % kShards]; }
  const Shard& of(std::uint32_t label) const { return shards_[label % kShards]; }

  std::array<Shard, kShards> shards_;
  std::atomic<std::size_t> labels_{0}, listed_{0};  // listed_: room for nodes in all lists
};

class Attributes {
 public:
  explicit Attributes(Epochs& epochs) : epochs_(epochs) {}

  // A node's labels, ascending.
  class Set {
   public:
    Set() = default;
    explicit Set(std::uint32_t one) : one_(one), size_(1) {}
    Set(const std::uint32_t* first, std::size_t size) : first_(first), size_(size) {}
    std::span<const std::uint32_t> span() const { return {size_ == 1 ? &one_ : first_, size_}; }

   private:
    const std::uint32_t* first_ = nullptr;
    std::uint32_t one_ = 0;
    std::size_t size_ = 0;
  };

  // Readers hold an epoch guard; what they see of a node that is being deleted or replaced may be
  // gone, so whether the node is live is to be asked afterwards.
  Set labels(NodeId node) const {
    if (node >= label_rows_.load(std::memory_order_acquire)) return {};
    const std::uint64_t ref = refs_[node].load(std::memory_order_acquire);
    const std::size_t size = ref >> kSizeShift;
    if (size == 0) return {};
    if (size == 1) return Set(static_cast<std::uint32_t>(ref));
    return {arena_.row(ref & kPlaceMask), size};
  }
  double value(NodeId node) const {
    if (node >= value_rows_.load(std::memory_order_acquire)) return kNoValue;
    return decode(values_[node].load(std::memory_order_acquire));
  }
  const LabelNodes& by_label() const { return by_label_; }

  // The writer's, one at a time. A node's attributes are set before it is live, and cleared after
  // it is no more.
  void set(NodeId node, std::span<const std::uint32_t> labels, double value);
  void clear(NodeId node);

  // As in the log and in state.nav: u32 count, labels, f64 value.
  static void put(ByteWriter& out, std::span<const std::uint32_t> labels, double value);
  void put(ByteWriter& out, NodeId node) const { put(out, labels(node).span(), value(node)); }
  void set_from(NodeId node, ByteReader& in);

  // Whether any vector has had attributes.
  bool used() const { return label_rows_.load() > 0 || value_rows_.load() > 0; }
  std::size_t memory_bytes() const;

 private:
  // A reference: the size of the set, and its place in the arena; of one label, the label itself.
  static constexpr unsigned kSizeShift = 40;
  static constexpr std::uint64_t kPlaceMask = (std::uint64_t{1} << kSizeShift) - 1;
  // Values are kept so that zeros, as fresh rows have, are kNoValue.
  static std::uint64_t encode(double value);
  static double decode(std::uint64_t stored);

  std::uint64_t place(std::span<const std::uint32_t> labels);

  Epochs& epochs_;
  std::atomic<NodeId> label_rows_{0}, value_rows_{0};  // nodes from there on have none
  ChunkedRows<std::atomic<std::uint64_t>> refs_, values_;
  ChunkedRows<std::uint32_t> arena_;
  std::uint64_t arena_used_ = 0;
  LabelNodes by_label_;
  std::map<std::size_t, std::vector<std::uint64_t>> free_;        // places by size
  std::vector<std::pair<std::uint64_t, std::uint64_t>> retired_;  // epoch, reference
};

// Reads attributes of nodes 0, 1, 2, ... from bytes that come in pieces cut anywhere.
class AttributeStream {
 public:
  explicit AttributeStream(Attributes& attributes) : attributes_(attributes) {}
  void feed(std::span<const std::byte> bytes);
  std::size_t rows() const { return next_; }  // whole ones read
  bool whole() const { return rest_.empty(); }

 private:
  Attributes& attributes_;
  std::vector<std::byte> rest_;
  NodeId next_ = 0;
};

}  // namespace navis
