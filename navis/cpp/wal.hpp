// Write-ahead log: what has been acknowledged and is not yet in the last checkpoint.
//
// A folder of segments wal-<first LSN, 16 hex digits>.log, little-endian. A segment is a 4 KiB
// header block (magic "NAVISWAL", u32 format version, u32 CRC32C of the block without this field,
// u64 first LSN, zeros) and records {u32 length, u32 crc, u64 lsn, u32 type, u32 unsynced, payload,
// zeros up to 8 bytes}: `length` counts the 24 bytes of the record's header and the payload; `crc`
// is over the payload with its zeros, then the header with zeros for crc; LSNs count 1, 2, 3, …
// without gaps over all segments. A zero length ends a segment: zeros, or the mark of a log closed
// in good order (length 0, the LSN that would be next, a crc).
//
// The file is written with O_DIRECT in whole blocks, and the last, partly filled block is written
// again with every commit: bytes already acknowledged are rewritten with equal bytes, so a torn
// block cannot harm them. A write of many blocks that power loss tears can leave later records
// whole and earlier ones not; so that this is told from damage, each record says how far behind it
// the durable ones ended when it was appended: LSNs <= lsn - unsynced were durable (0: not known).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>

#include "types.hpp"

namespace navis {

// When `commit` returns: after fdatasync (sync); after the write, with an fdatasync at least every
// `window_s` in the background (group: survives the process's death at once, the machine's within
// the window); at once (none: the write follows when a buffer is full, on flush, and on close).
enum class Durability : std::uint8_t { sync, group, none };

inline constexpr std::size_t kWalMaxPayload = 256U << 20U;

struct WalOptions {
  Durability durability = Durability::sync;
  double window_s = 0.05;
  std::uint64_t segment_bytes = 64U << 20U;  // a segment that reaches this is closed
  bool direct = true;  // O_DIRECT; where the file system refuses it, buffered all the same
};

struct WalCounters {
  std::uint64_t records = 0, payload_bytes = 0;
  // Of files: headers of segments and, with Durability::sync, the zeros written ahead included.
  std::uint64_t writes = 0, written_bytes = 0, syncs = 0;
};

class Wal {
 public:
  // Starts a new segment in `folder` (made if need be) whose first record will have LSN `next_lsn`;
  // existing segments stay, but for one without a whole record that would have the new one's name.
  // Throws Error(io | no_space), and Error(bad_input) where the folder holds records from next_lsn
  // on. One Wal a folder at a time: the lock is the caller's.
  Wal(std::filesystem::path folder, std::uint64_t next_lsn, WalOptions options);
  ~Wal();  // writes and syncs what is buffered and marks the end, swallowing errors
  Wal(const Wal&) = delete;
  Wal& operator=(const Wal&) = delete;

  // Buffers a record and gives its LSN; order of calls is order of LSNs. Thread-safe. Does no I/O
  // unless the buffer has outgrown 8 MiB. Error(bad_input) for more than kWalMaxPayload bytes.
  std::uint64_t append(std::uint32_t type, std::span<const std::byte> payload);
  // Returns when the record is as durable as the options promise. Group commit: one waiting thread
  // writes and syncs for all that wait. After a failed write or sync every later append and commit
  // throws Error(io | no_space) with the first cause: what was not written must not be
  // acknowledged. (Such records may still be found by replay: not acknowledged is not the same as
  // undone.)
  void commit(std::uint64_t lsn);
  // Writes and syncs everything appended so far, whatever the policy.
  void flush();
  // Closes the segment and starts the next; gives the LSN its first record will have. Records
  // before it are durable when it returns. Of an empty segment nothing is closed.
  std::uint64_t rotate();
  // Deletes segments all of whose records are < lsn, oldest first, those of earlier runs too; never
  // the one being written.
  void remove_before(std::uint64_t lsn);

  std::uint64_t next_lsn() const;
  // LSNs <= this survive the loss of power.
  std::uint64_t durable_lsn() const;
  // Bytes of all segments in the folder, what is still buffered included: what replay would have to
  // read; for the decision to take a checkpoint.
  std::uint64_t bytes_on_disk() const;
  WalCounters counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct WalReplay {
  std::uint64_t next_lsn = 1;  // one past the last whole record; from_lsn where there is no segment
  std::uint64_t records = 0;   // handed out
  std::uint64_t dropped_bytes = 0;  // of the last segment's torn tail, in words of 8
};

// Hands out every record with lsn >= from_lsn in order; segments wholly before from_lsn are not
// read. Throws Error(corrupt) naming file and offset
// - for a damaged record, if a whole record behind it, a closing mark or a later segment shows that
//   it had been durable (see `unsynced` above);
// - for a damaged header, unless it is of the last segment and no whole record is behind it;
// - for a gap between segments, a segment that is missing, misnamed or whose header tells another
//   first LSN than its name, and a log that ends before from_lsn.
// Any other damaged end is a torn tail and is dropped: it never loses a record that a finished
// write and sync had made durable, unless just those last bytes are what is damaged. Error(
// environment) for a newer format. A folder that does not exist is an empty log.
WalReplay replay_wal(const std::filesystem::path& folder, std::uint64_t from_lsn,
                     const std::function<void(std::uint64_t lsn, std::uint32_t type,
                                              std::span<const std::byte>)>& apply);

}  // namespace navis
