#include "attributes.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

namespace navis {

void LabelNodes::add(std::uint32_t label, NodeId node) {
  Shard& shard = of(label);
  std::lock_guard lock(shard.mutex);
  const auto [at, made] = shard.entries.try_emplace(label);
  if (made) labels_.fetch_add(1, std::memory_order_relaxed);
  Entry& entry = at->second;
  ++entry.count;
  if (!entry.listed) return;
  const std::size_t room = entry.nodes.capacity();
  // Nodes are numbered upwards, so this is an append but for places used again.
  entry.nodes.insert(std::upper_bound(entry.nodes.begin(), entry.nodes.end(), node), node);
  if (entry.nodes.size() > kListed) {
    entry.listed = false;
    std::vector<NodeId>().swap(entry.nodes);
  }
  listed_.fetch_add(entry.nodes.capacity() - room, std::memory_order_relaxed);
}

void LabelNodes::remove(std::uint32_t label, NodeId node) {
  Shard& shard = of(label);
  std::lock_guard lock(shard.mutex);
  const auto at = shard.entries.find(label);
  if (at == shard.entries.end()) return;
  Entry& entry = at->second;
  if (--entry.count == 0) {
    listed_.fetch_sub(entry.nodes.capacity(), std::memory_order_relaxed);
    labels_.fetch_sub(1, std::memory_order_relaxed);
    shard.entries.erase(at);
    return;
  }
  const auto place = std::lower_bound(entry.nodes.begin(), entry.nodes.end(), node);
  if (place != entry.nodes.end() && *place == node) entry.nodes.erase(place);
}

std::size_t LabelNodes::count(std::uint32_t label) const {
  const Shard& shard = of(label);
  std::lock_guard lock(shard.mutex);
  const auto at = shard.entries.find(label);
  return at == shard.entries.end() ? 0 : at->second.count;
}

bool LabelNodes::nodes(std::uint32_t label, std::vector<NodeId>& out) const {
  const Shard& shard = of(label);
  std::lock_guard lock(shard.mutex);
  const auto at = shard.entries.find(label);
  if (at == shard.entries.end()) return true;
  if (!at->second.listed) return false;
  out.insert(out.end(), at->second.nodes.begin(), at->second.nodes.end());
  return true;
}

std::size_t LabelNodes::memory_bytes() const {
  constexpr std::size_t kEntryBytes = sizeof(Entry) + 40;  // with its part of the hash table
  return labels_.load(std::memory_order_relaxed) * kEntryBytes +
         listed_.load(std::memory_order_relaxed) * sizeof(NodeId);
}

void AttributeRows::check(std::size_t n) const {
  for (std::size_t i = 0; label_at && i < n; ++i) {
    if (label_at[i + 1] < label_at[i] || label_at[i + 1] - label_at[i] > kMaxLabels) {
      throw Error(ErrorKind::bad_input, "vector " + std::to_string(i) + " of this call has " +
                                            std::to_string(label_at[i + 1] - label_at[i]) +
                                            " labels: use at most " + std::to_string(kMaxLabels));
    }
  }
}

std::uint64_t Attributes::encode(double value) {
  if (std::isnan(value)) return 0;
  return std::bit_cast<std::uint64_t>(value) ^ std::bit_cast<std::uint64_t>(kNoValue);
}

double Attributes::decode(std::uint64_t stored) {
  return std::bit_cast<double>(stored ^ std::bit_cast<std::uint64_t>(kNoValue));
}

// Room for a set of two labels or more: a place given back that no reader can still see, or new.
std::uint64_t Attributes::place(std::span<const std::uint32_t> labels) {
  const std::size_t size = labels.size();
  if (free_[size].empty() && !retired_.empty()) {
    const std::uint64_t oldest = epochs_.oldest();
    std::erase_if(retired_, [&](const auto& gone) {
      if (gone.first >= oldest) return false;
      free_[gone.second >> kSizeShift].push_back(gone.second & kPlaceMask);
      return true;
    });
  }
  std::uint64_t at;
  if (auto& free = free_[size]; !free.empty()) {
    at = free.back();
    free.pop_back();
  } else {
    constexpr std::size_t kRows = ChunkedRows<std::uint32_t>::kRows;
    if (const std::size_t left = kRows - arena_used_ % kRows; left < size) {  // never across chunks
      if (left > 1) free_[left].push_back(arena_used_);
      arena_used_ += left;
    }
    at = arena_used_;
    arena_used_ += size;
    arena_.grow(arena_used_);
  }
  std::copy(labels.begin(), labels.end(), arena_.row(at));
  return at;
}

void Attributes::set(NodeId node, std::span<const std::uint32_t> labels, double value) {
  clear(node);
  if (!labels.empty()) {
    std::vector<std::uint32_t> sorted(labels.begin(), labels.end());
    std::sort(sorted.begin(), sorted.end());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    const std::uint64_t what = sorted.size() == 1 ? sorted.front() : place(sorted);
    refs_.grow(node + 1);
    refs_[node].store(std::uint64_t{sorted.size()} << kSizeShift | what, std::memory_order_release);
    label_rows_.store(std::max(label_rows_.load(), node + 1), std::memory_order_release);
    for (const std::uint32_t label : sorted) by_label_.add(label, node);
  }
  if (!std::isnan(value)) {
    values_.grow(node + 1);
    values_[node].store(encode(value), std::memory_order_release);
    value_rows_.store(std::max(value_rows_.load(), node + 1), std::memory_order_release);
  }
}

void Attributes::clear(NodeId node) {
  if (node < label_rows_.load(std::memory_order_relaxed)) {
    const Set set = labels(node);
    for (const std::uint32_t label : set.span()) by_label_.remove(label, node);
    const std::uint64_t old = refs_[node].exchange(0, std::memory_order_acq_rel);
    if (old >> kSizeShift > 1) retired_.emplace_back(epochs_.retire(), old);
  }
  if (node < value_rows_.load(std::memory_order_relaxed)) {
    values_[node].store(0, std::memory_order_release);
  }
}

void Attributes::put(ByteWriter& out, std::span<const std::uint32_t> labels, double value) {
  out.put(static_cast<std::uint32_t>(labels.size()));
  out.put_bytes(labels.data(), labels.size_bytes());
  out.put(value);
}

void Attributes::set_from(NodeId node, ByteReader& in) {
  std::vector<std::uint32_t> labels(in.get<std::uint32_t>());
  const auto bytes = in.take(labels.size() * sizeof(std::uint32_t));
  if (!labels.empty()) std::memcpy(labels.data(), bytes.data(), bytes.size());
  set(node, labels, in.get<double>());
}

std::size_t Attributes::memory_bytes() const {
  return refs_.memory_bytes() + values_.memory_bytes() + arena_.memory_bytes() +
         by_label_.memory_bytes();
}

void AttributeStream::feed(std::span<const std::byte> bytes) {
  rest_.insert(rest_.end(), bytes.begin(), bytes.end());
  std::size_t done = 0;
  for (;;) {
    std::uint32_t count = 0;
    if (rest_.size() - done < sizeof count) break;
    std::memcpy(&count, rest_.data() + done, sizeof count);
    const std::size_t size = sizeof count + std::size_t{count} * sizeof count + sizeof(double);
    if (rest_.size() - done < size) break;
    ByteReader reader(std::span<const std::byte>(rest_).subspan(done, size));
    attributes_.set_from(next_++, reader);
    done += size;
  }
  rest_.erase(rest_.begin(), rest_.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace navis
