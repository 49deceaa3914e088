// The log's bytes on disk, shared by who writes them and who reads them. Internal.
#pragma once

#include <bit>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "posix_file.hpp"
#include "types.hpp"
#include "wal.hpp"

namespace navis::wal {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::size_t kRecordAlign = 8;

// `length` counts this header and the payload, so that an empty payload is not an end. `crc` is
// over the padded payload and then the other fields here.
struct RecordHeader {
  std::uint32_t length, crc;
  std::uint64_t lsn;
  std::uint32_t type, unsynced;
};
static_assert(sizeof(RecordHeader) == 24 && sizeof(RecordHeader) % kRecordAlign == 0);

constexpr std::size_t padded(std::size_t count) {
  return (count + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}

std::uint32_t padded_crc(std::span<const std::byte> payload);  // with the zeros behind it
std::uint32_t record_crc(const RecordHeader& header, std::uint32_t payload_crc);

// LSNs <= durable_lsn are durable.
void append_record(posix::AlignedBuffer& buffer, std::uint64_t lsn, std::uint64_t durable_lsn,
                   std::uint32_t type, std::span<const std::byte> payload,
                   std::uint32_t payload_crc);
// LSNs < next_lsn are durable, and no record follows.
void append_closing_mark(posix::AlignedBuffer& buffer, std::uint64_t next_lsn);

// What is before the records: one block.
struct SegmentHeader {
  char magic[8];
  std::uint32_t version, crc;
  std::uint64_t first_lsn;
};
inline constexpr char kMagic[] = "NAVISWAL";
std::uint32_t header_crc(const std::byte* block);

std::string segment_name(std::uint64_t first_lsn);

// A segment being written. Only sync() may run beside another call.
class SegmentWriter {
 public:
  // A durable file with a durable header before it has a record; nothing if that fails.
  // `how`: create_new, or replace one that is there.
  SegmentWriter(const std::filesystem::path& folder, std::uint64_t first_lsn, bool direct,
                posix::Open how);

  // Writes whole blocks, and zeros behind them, up to `limit`, if they pass what the file has.
  void write(std::uint64_t offset, posix::AlignedBuffer& blocks, std::uint64_t limit);
  // Gives back zeros behind `end`.
  void cut(std::uint64_t end);
  void sync() { file_.sync_data(); }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  posix::File file_;
  std::uint64_t size_ = kPageBytes;
};

struct Segment {
  std::uint64_t first_lsn;
  std::filesystem::path path;
  std::uint64_t bytes;
};
// By first LSN; none where there is no folder. A wal-*.log that is not named as we name is
// Error(corrupt): it may be one of ours, renamed.
std::vector<Segment> list_segments(const std::filesystem::path& folder);

using Apply = std::function<void(std::uint64_t, std::uint32_t, std::span<const std::byte>)>;

struct SegmentEnd {
  std::uint64_t next_lsn;     // one past the last whole record
  std::uint64_t records = 0;  // handed out
  std::uint64_t offset = 0;   // where the whole records end
  std::uint64_t dropped_bytes = 0;
};
// Hands out the segment's records with lsn >= from_lsn; see replay_wal for what it refuses. A
// damaged header with no whole record behind it is an empty segment only where `last`.
SegmentEnd read_segment(const Segment& segment, std::uint64_t from_lsn, bool last,
                        const Apply& apply);

}  // namespace navis::wal
