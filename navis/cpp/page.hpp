// The page format of both layouts (docs/format.md). A unit is one page, or as many as one packed
// record needs; it carries a header, a length per slot, and slots of
// [vector, packed layout only][node id][degree neighbour ids].
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "crc32c.hpp"
#include "types.hpp"

namespace navis {

inline constexpr std::uint32_t kPageMagic = 0x4750564E;  // "NVPG"
inline constexpr std::uint16_t kPageVersion = 1;

struct PageHeader {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t slots;  // filled ones; they are the first
  std::uint64_t lsn;    // of the newest change in it
  std::uint32_t crc;    // CRC-32C of the unit with this field zero
  std::uint32_t unit;   // its own place in the file, so that a misplaced write shows
  std::uint64_t live;   // bit i: slot i held a list when the page was written
};
static_assert(sizeof(PageHeader) == 32);

class PageFormat {
 public:
  // `vector_bytes` 0: edge pages. Otherwise packed records.
  PageFormat(std::size_t vector_bytes, std::size_t degree)
      : vector_bytes_((vector_bytes + 3) / 4 * 4),
        degree_(degree),
        slot_bytes_(vector_bytes_ + 4 + 4 * degree) {
    per_unit_ = 0;
    while (per_unit_ < 64 && offset(per_unit_ + 1) + (per_unit_ + 1) * slot_bytes_ <= kPageBytes) {
      ++per_unit_;
    }
    unit_bytes_ = kPageBytes;
    if (per_unit_ == 0) {
      per_unit_ = 1;
      unit_bytes_ = (offset(1) + slot_bytes_ + kPageBytes - 1) / kPageBytes * kPageBytes;
    }
  }

  bool packed() const { return vector_bytes_ != 0; }
  std::size_t degree() const { return degree_; }
  std::size_t per_unit() const { return per_unit_; }
  std::size_t unit_bytes() const { return unit_bytes_; }
  std::size_t slot_bytes() const { return slot_bytes_; }

  // Byte offset of a slot in its unit.
  std::size_t slot(std::size_t index) const { return offset(per_unit_) + index * slot_bytes_; }
  std::size_t vector_bytes() const { return vector_bytes_; }

 private:
  static std::size_t offset(std::size_t slots) { return (sizeof(PageHeader) + slots + 7) / 8 * 8; }

  std::size_t vector_bytes_, degree_, slot_bytes_, per_unit_, unit_bytes_;
};

class PageWriter {
 public:
  PageWriter(const PageFormat& format, std::span<std::byte> unit) : format_(format), unit_(unit) {
    std::memset(unit.data(), 0, unit.size());
  }
  std::size_t filled() const { return filled_; }
  bool full() const { return filled_ == format_.per_unit(); }
  void add(NodeId id, const std::byte* vector, std::size_t vector_bytes,
           std::span<const NodeId> list) {
    std::byte* slot = unit_.data() + format_.slot(filled_);
    if (format_.packed()) std::memcpy(slot, vector, vector_bytes);
    std::memcpy(slot + format_.vector_bytes(), &id, sizeof id);
    if (!list.empty()) {
      std::memcpy(slot + format_.vector_bytes() + 4, list.data(), list.size_bytes());
    }
    unit_[sizeof(PageHeader) + filled_] = static_cast<std::byte>(list.size());
    ++filled_;
  }
  void finish(std::uint32_t unit, std::uint64_t lsn) {
    PageHeader header{kPageMagic,
                      kPageVersion,
                      static_cast<std::uint16_t>(filled_),
                      lsn,
                      0,
                      unit,
                      filled_ == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << filled_) - 1};
    std::memcpy(unit_.data(), &header, sizeof header);
    header.crc = crc32c(unit_);
    std::memcpy(unit_.data(), &header, sizeof header);
  }

 private:
  const PageFormat& format_;
  std::span<std::byte> unit_;
  std::size_t filled_ = 0;
};

class PageView {
 public:
  PageView(const PageFormat& format, const std::byte* unit) : format_(&format), unit_(unit) {}

  PageHeader header() const {
    PageHeader header;
    std::memcpy(&header, unit_, sizeof header);
    return header;
  }
  // Empty when the unit is whole, otherwise what is wrong with it.
  std::string fault(std::uint32_t unit) const {
    const PageHeader h = header();
    if (h.magic != kPageMagic) return "no page of ours (magic)";
    if (h.version > kPageVersion) return "a newer page format";
    std::uint32_t crc = crc32c(0, unit_, offsetof(PageHeader, crc));
    const std::uint32_t zero = 0;
    crc = crc32c(crc, &zero, sizeof zero);
    const std::size_t rest = offsetof(PageHeader, crc) + sizeof zero;
    crc = crc32c(crc, unit_ + rest, format_->unit_bytes() - rest);
    if (crc != h.crc) return "checksum does not match";
    if (h.unit != unit) return "written to another place (misdirected)";
    return {};
  }
  std::size_t slots() const { return header().slots; }
  NodeId id(std::size_t slot) const {
    NodeId id;
    std::memcpy(&id, at(slot) + format_->vector_bytes(), sizeof id);
    return id;
  }
  std::span<const NodeId> list(std::size_t slot) const {
    const std::byte* first = at(slot) + format_->vector_bytes() + 4;
    return {reinterpret_cast<const NodeId*>(first),
            static_cast<std::size_t>(unit_[sizeof(PageHeader) + slot])};
  }
  const std::byte* vector(std::size_t slot) const { return at(slot); }

 private:
  const std::byte* at(std::size_t slot) const { return unit_ + format_->slot(slot); }

  const PageFormat* format_;
  const std::byte* unit_;
};

}  // namespace navis
