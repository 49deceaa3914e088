#include "store.hpp"

#include <cstring>

namespace navis {

Store::Store(std::filesystem::path where, const IndexOptions& index, const OpenOptions& open)
    : folder(std::move(where)),
      options(index),
      session(open),
      space(index.dim, index.type, index.metric, index.radius),
      format(index.layout == Layout::packed ? space.raw_bytes() : 0, index.degree),
      units(epochs),
      slots(epochs),
      entrance(epochs),
      attributes(epochs),
      budget(open.write_rate) {}

VectorPlace Store::slot_place(std::uint32_t slot) const {
  const std::size_t raw = space.raw_bytes();
  if (raw <= kPageBytes) {
    const std::size_t per_page = vectors_per_page();
    return {std::uint64_t{slot / per_page} * kPageBytes, kPageBytes, slot % per_page * raw};
  }
  const std::size_t bytes = vector_read_bytes();
  return {std::uint64_t{slot} * bytes, bytes, 0};
}

void Store::grow(std::size_t nodes) {
  location.grow(nodes);
  state.grow(nodes);
  external.grow(nodes);
  checksum.grow(nodes);
  if (packed()) return;
  vector_slot.grow(nodes);
  // As an index is built; inserted ones have none yet.
  for (; slotted_ < nodes; ++slotted_) {
    vector_slot[slotted_].store(static_cast<std::uint32_t>(slotted_), std::memory_order_relaxed);
  }
}

void Store::check_unit(std::uint32_t unit, const std::byte* bytes) const {
  const std::string fault = PageView(format, bytes).fault(unit);
  if (fault.empty()) return;
  throw Error(ErrorKind::corrupt, pages.path().string() + ": page at byte " +
                                      std::to_string(unit_offset(unit)) + ": " + fault +
                                      "; run navis verify");
}

void Store::check_vector(NodeId id, const std::byte* raw) const {
  if (vector_matches(id, raw)) return;
  const std::uint64_t at = packed() ? unit_offset(unit_of(location[id]))
                                    : vector_place(id).offset + vector_place(id).skip;
  throw Error(ErrorKind::corrupt, (packed() ? pages : vectors).path().string() + ": vector of id " +
                                      std::to_string(external[id]) + " at byte " +
                                      std::to_string(at) +
                                      ": checksum does not match; run navis verify");
}

void Store::read_vector(NodeId node, std::byte* raw) const {
  const std::size_t raw_bytes = space.raw_bytes();
  for (;;) {
    if (packed()) {
      const std::uint32_t at = location[node].load(std::memory_order_acquire);
      if (at == kPendingLoc) {
        if (lists.find(node, [&](const PendingEntry& e) {
              std::memcpy(raw, e.vector.data(), raw_bytes);
            })) {
          break;
        }
        continue;
      }
      shorthaul::uring::Buffer buffer(format.unit_bytes());
      pages.read_at(unit_offset(unit_of(at)), buffer.span(0, format.unit_bytes()));
      check_unit(unit_of(at), buffer.data());
      std::memcpy(raw, PageView(format, buffer.data()).vector(slot_of(at)), raw_bytes);
      break;
    }
    if (fresh.find(node, [&](const std::vector<std::byte>& v) {
          std::memcpy(raw, v.data(), raw_bytes);
        })) {
      break;
    }
    const VectorPlace place = vector_place(node);
    vectors.read_at(place.offset + place.skip, {raw, raw_bytes});
    break;
  }
  check_vector(node, raw);
}

std::size_t Store::table_bytes() const {
  return location.memory_bytes() + state.memory_bytes() + external.memory_bytes() +
         checksum.memory_bytes() + vector_slot.memory_bytes();
}

}  // namespace navis
