#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <system_error>

#include "crc32c.hpp"
#include "wal_format.hpp"

namespace navis::wal {
namespace {

// The write that passes the end of the file carries this many zeros behind its records. The commits
// that follow overwrite blocks the file already has, and their fdatasync finds no changed size or
// extent to commit to the file system's journal: two device writes instead of three (ext4, records
// of 4 KiB), 1.4 times the commits a second. posix_fallocate does not give that, because the first
// write to an unwritten extent is a change of extents too; measured, it changed neither figure.
constexpr std::size_t kZerosAhead = 256U << 10U;

constexpr std::size_t kNameDigits = 16;

}  // namespace

std::uint32_t padded_crc(std::span<const std::byte> payload) {
  constexpr std::byte zeros[kRecordAlign] = {};
  return crc32c(crc32c(payload), zeros, padded(payload.size()) - payload.size());
}

std::uint32_t record_crc(const RecordHeader& header, std::uint32_t payload_crc) {
  RecordHeader fields = header;
  fields.crc = 0;
  return crc32c(payload_crc, &fields, sizeof fields);
}

void append_record(posix::AlignedBuffer& buffer, std::uint64_t lsn, std::uint64_t durable_lsn,
                   std::uint32_t type, std::span<const std::byte> payload,
                   std::uint32_t payload_crc) {
  RecordHeader header{};
  header.length = static_cast<std::uint32_t>(sizeof header + payload.size());
  header.lsn = lsn;
  header.type = type;
  // Zero claims nothing.
  const std::uint64_t unsynced = lsn - durable_lsn;
  if (unsynced <= std::numeric_limits<std::uint32_t>::max()) {
    header.unsynced = static_cast<std::uint32_t>(unsynced);
  }
  header.crc = record_crc(header, payload_crc);
  buffer.reserve(buffer.size() + padded(header.length));  // all or nothing
  buffer.append(&header, sizeof header);
  buffer.append(payload.data(), payload.size());
  buffer.append_zeros(padded(payload.size()) - payload.size());
}

void append_closing_mark(posix::AlignedBuffer& buffer, std::uint64_t next_lsn) {
  RecordHeader mark{};
  mark.lsn = next_lsn;
  mark.unsynced = 1;
  mark.crc = record_crc(mark, 0);
  buffer.append(&mark, sizeof mark);
}

std::uint32_t header_crc(const std::byte* block) {
  constexpr std::size_t at = offsetof(SegmentHeader, crc);
  constexpr std::size_t behind = at + sizeof(std::uint32_t);
  return crc32c(crc32c(0, block, at), block + behind, kPageBytes - behind);
}

std::string segment_name(std::uint64_t first_lsn) {
  std::string digits(kNameDigits, '0');
  for (std::size_t i = kNameDigits; i-- > 0; first_lsn >>= 4U) {
    digits[i] = "0123456789abcdef"[first_lsn & 15U];
  }
  return "wal-" + digits + ".log";
}

SegmentWriter::SegmentWriter(const std::filesystem::path& folder, std::uint64_t first_lsn,
                             bool direct, posix::Open how)
    : file_(folder / segment_name(first_lsn), how, direct) {
  try {
    posix::AlignedBuffer block;
    block.append_zeros(kPageBytes);
    SegmentHeader header{};
    std::memcpy(header.magic, kMagic, sizeof header.magic);
    header.version = kFormatVersion;
    header.first_lsn = first_lsn;
    std::memcpy(block.data(), &header, sizeof header);
    header.crc = header_crc(block.data());
    std::memcpy(block.data(), &header, sizeof header);
    file_.write_at(0, block.data(), block.size());
    file_.sync_all();
    posix::sync_folder(folder);
  } catch (...) {
    std::error_code ignored;
    if (how == posix::Open::create_new) std::filesystem::remove(path(), ignored);
    throw;
  }
}

void SegmentWriter::write(std::uint64_t offset, posix::AlignedBuffer& blocks, std::uint64_t limit) {
  const std::uint64_t end = offset + blocks.size();
  if (end > size_ && end < limit) {
    const auto ahead = std::min<std::uint64_t>(kZerosAhead, limit - end);
    blocks.append_zeros(ahead / kPageBytes * kPageBytes);
  }
  file_.write_at(offset, blocks.data(), blocks.size());
  size_ = std::max(size_, offset + blocks.size());
}

void SegmentWriter::cut(std::uint64_t end) {
  if (size_ <= end) return;
  file_.truncate(end);
  size_ = end;
}

}  // namespace navis::wal
