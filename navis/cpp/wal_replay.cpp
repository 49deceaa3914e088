#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string_view>

#include "crc32c.hpp"
#include "posix_file.hpp"
#include "wal_format.hpp"

namespace navis::wal {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, std::uint64_t offset,
                         const std::string& what) {
  throw Error(ErrorKind::corrupt, path.string() + ", byte " + std::to_string(offset) + ": " + what);
}

// One segment's bytes as records.
class Reader {
 public:
  explicit Reader(const Segment& segment) : segment_(segment), window_(segment.path, false) {}

  std::uint64_t size() const { return window_.size(); }

  bool header_is_whole() {
    const auto block = window_.at(0, kPageBytes);
    if (block.size() < kPageBytes) return false;
    SegmentHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof header.magic) != 0) return false;
    if (header.crc != header_crc(block.data())) return false;
    if (header.version > kFormatVersion) {
      throw Error(ErrorKind::environment,
                  segment_.path.string() + " has log format " + std::to_string(header.version) +
                      "; this program reads up to " + std::to_string(kFormatVersion));
    }
    if (header.first_lsn != segment_.first_lsn) {
      refuse(segment_.path, offsetof(SegmentHeader, first_lsn),
             "the header's first LSN is " + std::to_string(header.first_lsn) +
                 ", not the one in the file's name");
    }
    return true;
  }

  RecordHeader header_at(std::uint64_t offset) {
    RecordHeader header{};
    const auto bytes = window_.at(offset, sizeof header);
    if (!bytes.empty()) std::memcpy(&header, bytes.data(), bytes.size());
    return header;
  }

  // Whether a whole record, or a closing mark, with an LSN in [lowest, highest] is here.
  bool whole(std::uint64_t offset, const RecordHeader& header, std::uint64_t lowest,
             std::uint64_t highest) {
    if (header.lsn < lowest || header.lsn > highest) return false;
    if (offset + sizeof header > size()) return false;
    if (header.length == 0) return header.crc == record_crc(header, 0);
    if (header.length < sizeof header || offset + padded(header.length) > size()) return false;
    return record_crc(header, crc32c(payload(offset, padded(header.length)))) == header.crc;
  }

  // What follows the header of a record of `length` bytes at `offset`.
  std::span<const std::byte> payload(std::uint64_t offset, std::size_t length) {
    return window_.at(offset + sizeof(RecordHeader), length - sizeof(RecordHeader));
  }

  // Looks behind damage at `offset` for a whole record which proves that `expected` had been made
  // durable: one that was buffered when it already was. A write of many blocks that power loss has
  // torn may leave its later records whole; those prove nothing. `any`: each whole record will do.
  struct Behind {
    std::optional<std::uint64_t> proof_lsn;
    std::uint64_t proof_offset = 0;
    std::uint64_t end;  // of the last word that is not zero
  };
  Behind look_behind(std::uint64_t offset, std::uint64_t expected, bool any) {
    Behind behind{{}, 0, offset};
    // A record takes 24 bytes and more: LSNs beyond this are payload that happens to look like one.
    const std::uint64_t highest = expected + (size() - offset) / sizeof(RecordHeader) + 1;
    for (std::uint64_t at = next_word(offset); at < size(); at = next_word(at + kRecordAlign)) {
      behind.end = std::min(size(), at + kRecordAlign);
      if (behind.proof_lsn) continue;
      const RecordHeader header = header_at(at);
      if (!whole(at, header, any ? expected : expected + 1, highest)) continue;
      const bool was_durable = header.unsynced > 0 && header.unsynced <= header.lsn &&
                               header.lsn - header.unsynced >= expected;
      if (any || was_durable) {
        behind.proof_lsn = header.lsn;
        behind.proof_offset = at;
      }
    }
    return behind;
  }

 private:
  // The first word of 8 bytes from `at` on that is not zero, or size(). (A closing mark begins with
  // one, its CRC, but for a chance of 2^-32, and then only a proof is missed.)
  std::uint64_t next_word(std::uint64_t at) {
    constexpr std::size_t stride = 64U << 10U;
    for (; at < size(); at += stride) {
      const auto bytes = window_.at(at, stride);
      for (std::size_t i = 0; i < bytes.size(); i += kRecordAlign) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data() + i, std::min(kRecordAlign, bytes.size() - i));
        if (word != 0) return at + i;
      }
    }
    return size();
  }

  const Segment& segment_;
  posix::Window window_;
};

std::optional<std::uint64_t> parse_name(std::string_view name) {
  const auto digits = name.substr(4, name.size() - 8);
  std::uint64_t lsn = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), lsn, 16);
  if (error != std::errc{} || end != digits.data() + digits.size()) return {};
  if (lsn == 0 || segment_name(lsn) != name) return {};
  return lsn;
}

}  // namespace

std::vector<Segment> list_segments(const std::filesystem::path& folder) {
  std::vector<Segment> segments;
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  if (error == std::errc::no_such_file_or_directory) return segments;
  if (error) posix::throw_errno(error.value(), "cannot list", folder);
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("wal-") || !name.ends_with(".log")) continue;
    const auto lsn = parse_name(name);
    if (!lsn) {
      throw Error(ErrorKind::corrupt, entry.path().string() + " is not named as a log segment is " +
                                          "(wal-<first LSN, 16 hex digits>.log); move it away");
    }
    segments.push_back({*lsn, entry.path(), entry.file_size()});
  }
  std::sort(segments.begin(), segments.end(),
            [](const Segment& a, const Segment& b) { return a.first_lsn < b.first_lsn; });
  return segments;
}

SegmentEnd read_segment(const Segment& segment, std::uint64_t from_lsn, bool last,
                        const Apply& apply) {
  Reader reader(segment);
  SegmentEnd end{segment.first_lsn};
  if (!reader.header_is_whole()) {
    const auto behind = reader.look_behind(std::min<std::uint64_t>(kPageBytes, reader.size()),
                                           segment.first_lsn, true);
    if (behind.proof_lsn) {
      refuse(segment.path, 0,
             "the header is damaged, and record " + std::to_string(*behind.proof_lsn) +
                 " behind it, at byte " + std::to_string(behind.proof_offset) + ", is whole");
    }
    if (!last) refuse(segment.path, 0, "the header is damaged, and there are later segments");
    end.dropped_bytes = behind.end - std::min<std::uint64_t>(kPageBytes, reader.size());
    return end;
  }
  end.offset = kPageBytes;
  while (true) {
    const RecordHeader header = reader.header_at(end.offset);
    if (!reader.whole(end.offset, header, end.next_lsn, end.next_lsn)) break;
    if (header.length == 0) return end;  // closed in good order
    if (header.lsn >= from_lsn) {
      apply(header.lsn, header.type, reader.payload(end.offset, header.length));
      ++end.records;
    }
    end.offset += padded(header.length);
    ++end.next_lsn;
  }
  const auto behind = reader.look_behind(end.offset, end.next_lsn, false);
  if (behind.proof_lsn) {
    refuse(segment.path, end.offset,
           "record " + std::to_string(end.next_lsn) + " is damaged, and record " +
               std::to_string(*behind.proof_lsn) + " behind it, at byte " +
               std::to_string(behind.proof_offset) + ", is whole");
  }
  end.dropped_bytes = behind.end - end.offset;
  return end;
}

}  // namespace navis::wal

namespace navis {

WalReplay replay_wal(
    const std::filesystem::path& folder, std::uint64_t from_lsn,
    const std::function<void(std::uint64_t, std::uint32_t, std::span<const std::byte>)>& apply) {
  const auto segments = wal::list_segments(folder);
  WalReplay replay;
  replay.next_lsn = std::max<std::uint64_t>(1, from_lsn);
  if (segments.empty()) return replay;

  // Segments wholly before from_lsn are of no interest, whatever their state.
  std::size_t first = 0;
  while (first + 1 < segments.size() && segments[first + 1].first_lsn <= replay.next_lsn) ++first;
  if (segments[first].first_lsn > replay.next_lsn) {
    throw Error(ErrorKind::corrupt, "the log begins with " + segments[first].path.string() +
                                        ": no segment holds record " +
                                        std::to_string(replay.next_lsn));
  }
  for (std::size_t i = first; i < segments.size(); ++i) {
    const bool last = i + 1 == segments.size();
    const auto end = wal::read_segment(segments[i], replay.next_lsn, last, apply);
    replay.records += end.records;
    if (!last && end.next_lsn != segments[i + 1].first_lsn) {
      wal::refuse(segments[i].path, end.offset,
                  "whole records end before " + std::to_string(end.next_lsn) + ", but " +
                      segments[i + 1].path.string() + " follows");
    }
    if (last) {
      if (end.next_lsn < replay.next_lsn) {
        wal::refuse(segments[i].path, end.offset,
                    "the log ends before record " + std::to_string(end.next_lsn) +
                        ", but was to hold all before " + std::to_string(replay.next_lsn));
      }
      replay.next_lsn = end.next_lsn;
      replay.dropped_bytes = end.dropped_bytes;
    }
  }
  return replay;
}

}  // namespace navis
