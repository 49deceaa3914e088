// Asynchronous file I/O: io_uring where the kernel grants it, a pool of pread/pwrite threads where
// it does not, with the same results. O_DIRECT by default; a ring belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace shorthaul::uring {

inline constexpr std::size_t kAlignment = 4096, kHugePage = std::size_t{2} << 20U;

// Memory aligned for O_DIRECT, zeroed, freed with its owner.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);  // zeros in whole pages, huge ones from 2 MiB on; bad_alloc
  std::byte* data() const;
  std::size_t size() const;
  std::span<std::byte> span(std::size_t offset, std::size_t count) const;

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
  std::size_t size_ = 0;
};

// A file with two descriptors: an O_DIRECT one for aligned transfers and a buffered one for
// headers and odd sizes. Errors are std::system_error with the path in the message.
class File {
 public:
  enum class Mode : std::uint8_t { read, write, create };  // create: makes or truncates
  File() = default;
  // `direct` false, or a file system without O_DIRECT (tmpfs): both descriptors are buffered.
  // All but `read` also read. Copies share the descriptors, which close with the last of them.
  static File open(const std::filesystem::path& path, Mode mode, bool direct = true);

  explicit operator bool() const;
  int fd() const;  // the direct one
  int buffered_fd() const;
  bool direct() const;  // whether fd() really is O_DIRECT
  const std::filesystem::path& path() const;
  std::uint64_t size() const;
  void resize(std::uint64_t bytes);    // ftruncate
  void allocate(std::uint64_t bytes);  // posix_fallocate: ENOSPC now, not later
  void sync();                         // fdatasync
  // Whole transfers through the buffered descriptor, at any offset and size.
  void read_at(std::uint64_t offset, std::span<std::byte> into) const;
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);

 private:
  struct Handle;
  std::shared_ptr<Handle> handle_;
};

enum class Backend : std::uint8_t { automatic, uring, posix };

struct Options {
  unsigned depth = 256;                  // requests in flight at most
  Backend backend = Backend::automatic;  // SHORTHAUL_IO=uring|posix overrides automatic
  unsigned posix_threads = 4;
};

struct Counters {
  std::uint64_t reads = 0, writes = 0, syncs = 0;  // requests as asked for
  std::uint64_t read_bytes = 0, write_bytes = 0;   // transferred
  std::uint64_t continued = 0;                     // short transfers taken up again
  // System calls, and blocking ones among them. posix: transfers handed to the threads, one call
  // each, and the times that submit_and_wait had to wait for them.
  std::uint64_t submits = 0, waits = 0;
};

struct Completion {
  std::uint64_t tag = 0;
  int error = 0;          // 0, or an errno; ENODATA where the file ended inside the request
  std::size_t bytes = 0;  // transferred; = asked for when error is 0
};

class Ring {
 public:
  // automatic: io_uring, or posix with reason() saying why not. uring: throws std::system_error
  // where it is refused.
  explicit Ring(const Options& options = {});
  ~Ring();  // starts what is queued, waits for all that is in flight
  Ring(Ring&&) noexcept;
  Ring& operator=(Ring&&) noexcept;

  Backend backend() const;
  const std::string& reason() const;  // empty with io_uring

  // Registered files and buffers save the kernel work per request; both are optional. Files not
  // registered are used by their descriptor. Call while nothing is in flight (std::logic_error); a
  // new set replaces the old. False where there is nothing to gain or the kernel has a limit
  // against it (locked memory: ulimit -l); everything works the same without.
  bool register_files(std::span<const File> files);
  bool register_buffers(std::span<const std::span<std::byte>> buffers);

  // Queue a request; the memory must live until its completion, the File need not. When `depth`
  // requests are queued or in flight the call throws std::length_error: callers count. Transfers
  // go to file.fd(): what its alignment does not allow completes with EINVAL.
  void read(const File& file, std::uint64_t offset, std::span<std::byte> into, std::uint64_t tag);
  void write(const File& file, std::uint64_t offset, std::span<const std::byte> bytes,
             std::uint64_t tag);
  void sync(const File& file, std::uint64_t tag);  // fdatasync, not ordered against the others

  // Starts what is queued, waits for at least `minimum` completions (0: none; no more than are in
  // flight), appends all that are there to `out` and gives their number.
  std::size_t submit_and_wait(std::size_t minimum, std::vector<Completion>& out);

  std::size_t in_flight() const;  // queued or started, not yet handed out
  std::size_t depth() const;
  const Counters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether this process may use io_uring, and if not, why ("ENOSYS: …", "built without liburing");
// SHORTHAUL_IO has no say in it.
bool is_available(std::string* reason = nullptr);

}  // namespace shorthaul::uring
