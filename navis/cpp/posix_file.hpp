// Files by plain POSIX calls: every call checked, interrupted and short transfers continued.
// Internal: shared by the log and by the checkpoint's files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "types.hpp"

namespace navis::posix {

// Error(no_space) where the disk or the quota is full, else Error(io): "doing path: reason".
[[noreturn]] void throw_errno(int error, const std::string& doing,
                              const std::filesystem::path& path);

// Bytes in memory aligned to kPageBytes, as O_DIRECT wants them. What it grows by is not cleared.
class AlignedBuffer {
 public:
  std::byte* data() { return bytes_.get(); }
  const std::byte* data() const { return bytes_.get(); }
  std::size_t size() const { return size_; }
  void clear() { size_ = 0; }
  void reserve(std::size_t count);
  // Makes room for `count` bytes more and gives their place.
  std::byte* extend(std::size_t count);
  void append(const void* bytes, std::size_t count);
  void append_zeros(std::size_t count);
  // Zeros up to the next multiple of kPageBytes.
  void pad_to_page();

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

enum class Open : std::uint8_t { read, create_new, replace };

// An open file. With `direct`, O_DIRECT until the file system answers EINVAL, buffered from then
// on; offsets, counts and memory are then the caller's to align. Errors name the file.
class File {
 public:
  File(std::filesystem::path path, Open how, bool direct);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write_at(std::uint64_t offset, const std::byte* bytes, std::size_t count);
  // Gives the bytes read: `count`, or fewer where the file ends.
  std::size_t read_at(std::uint64_t offset, std::byte* bytes, std::size_t count);
  void truncate(std::uint64_t size);
  void sync_data();  // fdatasync
  void sync_all();   // fsync
  std::uint64_t size() const;
  bool direct() const { return direct_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  bool gave_up_direct();

  std::filesystem::path path_;
  int fd_ = -1;
  bool direct_ = false;
};

// A file read front to back through one buffer, which holds at least the span last asked for.
class Window {
 public:
  Window(const std::filesystem::path& path, bool direct);

  std::uint64_t size() const { return size_; }
  // The bytes [offset, offset + count), cut where the file ends; valid until the next call.
  std::span<const std::byte> at(std::uint64_t offset, std::size_t count);

 private:
  File file_;
  std::uint64_t size_;
  std::uint64_t start_ = 0;
  AlignedBuffer buffer_;
};

// Makes created, renamed and deleted names in `folder` durable.
void sync_folder(const std::filesystem::path& folder);

}  // namespace navis::posix
