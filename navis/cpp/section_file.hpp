// A checkpoint's file: named sections of bytes, every chunk with its CRC32C, written once.
//
// Layout, little-endian: 4 KiB header (magic "NAVISSEC", u32 format version, u32 CRC32C of the
// block without this field, zeros), then chunks {u32 section (4 ASCII letters), u32 payload bytes
// (<= 1 MiB), u32 CRC32C of the other header fields (zeros for the crc) and the payload, u32
// sequence number from 0, payload}, then an end chunk (section "END!", payload: u64 count of chunks
// before it), which ends the file. Every chunk is checked when read; a missing end chunk, bytes
// behind it, a wrong sequence or a bad CRC is Error(corrupt) naming file and offset; a newer
// version is Error(environment).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "types.hpp"

namespace navis {

// For one thread.
class SectionWriter {
 public:
  // Writes to path + ".partial". Uses O_DIRECT in large blocks where the file system has it, so
  // that a checkpoint does not fill the page cache.
  // `pace`, if given, is asked before each write of so many bytes, which then are no more than
  // IoBudget::kPortion.
  using Pace = std::function<void(std::uint64_t)>;
  explicit SectionWriter(std::filesystem::path path, Pace pace = {});
  ~SectionWriter();  // without finish(): deletes the partial file
  SectionWriter(const SectionWriter&) = delete;
  SectionWriter& operator=(const SectionWriter&) = delete;

  // Appends to a section; calls for one section may be many, and sections may interleave. Small
  // writes to one section in a row share a chunk; one of no bytes leaves an empty chunk where the
  // section has none open. After a failure, Error(io | no_space), the partial file is gone and
  // every further call is Error(closed).
  void write(const char (&section)[5], std::span<const std::byte> bytes);
  template <class T>
  void write_values(const char (&section)[5], std::span<const T> values) {
    write(section, std::as_bytes(values));
  }
  // Syncs, renames into place and syncs the folder. Gives the bytes of the file.
  std::uint64_t finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// For one thread.
class SectionReader {
 public:
  explicit SectionReader(const std::filesystem::path& path);
  ~SectionReader();
  SectionReader(const SectionReader&) = delete;
  SectionReader& operator=(const SectionReader&) = delete;

  // Streams the file once, in the order written: next() moves to the next chunk; false at the
  // (checked) end. Only then is the file known to be whole.
  bool next();
  std::string section() const;
  // The chunk's bytes until the following next(); at no particular alignment, so copy values out.
  // Where a section is cut into chunks is the writer's matter.
  std::span<const std::byte> bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Replaces a small file: writes path + ".partial", syncs, renames, syncs the folder. Whatever
// happens, `path` is the old file or the new one, whole.
void write_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

}  // namespace navis
