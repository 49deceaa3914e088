// People's 64-bit ids to nodes: open addressing over node ids alone, the 64-bit ids being in the
// node table already. One thread at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "chunked.hpp"
#include "types.hpp"

namespace navis {

class IdMap {
 public:
  explicit IdMap(const ChunkedRows<std::uint64_t>& external) : external_(external) {}

  NodeId find(std::uint64_t id) const {
    if (table_.empty()) return kNoNode;
    for (std::size_t at = start(id);; at = (at + 1) & (table_.size() - 1)) {
      if (table_[at] == kNoNode) return kNoNode;
      if (external_[table_[at]] == id) return table_[at];
    }
  }
  // The node's external id must be in the table already and not be mapped.
  void insert(NodeId node) {
    if ((size_ + 1) * 10 > table_.size() * 7) grow();
    place(node);
    ++size_;
  }
  void erase(std::uint64_t id) {
    if (table_.empty()) return;
    const std::size_t mask = table_.size() - 1;
    std::size_t at = start(id);
    while (table_[at] != kNoNode && external_[table_[at]] != id) at = (at + 1) & mask;
    if (table_[at] == kNoNode) return;
    --size_;
    // Backward shift: entries behind move up unless they already stand at their start.
    for (std::size_t next = (at + 1) & mask; table_[next] != kNoNode; next = (next + 1) & mask) {
      const std::size_t home = start(external_[table_[next]]);
      if (((next - home) & mask) >= ((next - at) & mask)) {
        table_[at] = table_[next];
        at = next;
      }
    }
    table_[at] = kNoNode;
  }
  std::size_t size() const { return size_; }
  std::size_t memory_bytes() const { return table_.capacity() * sizeof(NodeId); }
  void clear() {
    table_.clear();
    size_ = 0;
  }

 private:
  std::size_t start(std::uint64_t id) const {
    id ^= id >> 33U;
    id *= 0xFF51AFD7ED558CCDULL;
    id ^= id >> 33U;
    return id & (table_.size() - 1);
  }
  void place(NodeId node) {
    std::size_t at = start(external_[node]);
    while (table_[at] != kNoNode) at = (at + 1) & (table_.size() - 1);
    table_[at] = node;
  }
  void grow() {
    std::vector<NodeId> old(table_.empty() ? 64 : table_.size() * 2, kNoNode);
    old.swap(table_);
    for (const NodeId node : old) {
      if (node != kNoNode) place(node);
    }
  }

  const ChunkedRows<std::uint64_t>& external_;
  std::vector<NodeId> table_;
  std::size_t size_ = 0;
};

}  // namespace navis
