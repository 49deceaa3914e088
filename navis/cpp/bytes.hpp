// Writing and reading of records as plain little-endian bytes.
#pragma once

#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "types.hpp"

namespace navis {

class ByteWriter {
 public:
  template <class T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    put_bytes(&value, sizeof value);
  }
  void put_bytes(const void* data, std::size_t count) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + count);
    if (count) std::memcpy(bytes_.data() + at, data, count);
  }
  void put_list(NodeId id, std::span<const NodeId> list) {
    put(id);
    put(static_cast<std::uint32_t>(list.size()));
    put_bytes(list.data(), list.size_bytes());
  }
  void clear() { bytes_.clear(); }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// Throws Error(corrupt) when the record ends early.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}
  template <class T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::span<const std::byte> take(std::size_t count) {
    if (count > rest_.size()) throw Error(ErrorKind::corrupt, "a record of the log ends early");
    const auto taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }
  NodeId get_list(std::vector<NodeId>& list) {
    const auto id = get<NodeId>();
    const auto count = get<std::uint32_t>();
    const auto bytes = take(std::size_t{count} * sizeof(NodeId));
    list.resize(count);
    if (count) std::memcpy(list.data(), bytes.data(), bytes.size());
    return id;
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace navis
