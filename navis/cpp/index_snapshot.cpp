// A copy of an index that is in use.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "index.hpp"
#include "index_detail.hpp"
#include "posix_file.hpp"
#include "wal_format.hpp"

namespace navis {

namespace {

constexpr std::size_t kChunk = 16U << 20U;

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags)
      : fd_(::open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) posix::throw_errno(errno, "cannot open", path);
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return fd_; }

 private:
  int fd_;
};

// Copies what a file holds now: shared blocks where the file system can, else within the kernel,
// else through memory. `copied` is told of every chunk.
void copy_file(const std::filesystem::path& from, const std::filesystem::path& to,
               const std::function<void(std::uint64_t)>& copied) {
  const Descriptor in(from, O_RDONLY | O_CLOEXEC);
  const Descriptor out(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
  const std::uint64_t size = std::filesystem::file_size(from);
  std::uint64_t done = 0;
  if (::ioctl(out, FICLONE, int{in}) == 0) {
    copied(size);
    done = size;
  }
  std::vector<std::byte> buffer;
  for (bool in_kernel = true; done < size;) {
    const std::size_t wanted = std::min<std::uint64_t>(kChunk, size - done);
    auto at = static_cast<off_t>(done);
    ssize_t count = -1;
    if (in_kernel) {
      off_t there = at;
      count = ::copy_file_range(in, &at, out, &there, wanted, 0);
      if (count < 0 && errno != EINTR && errno != ENOSPC && errno != EDQUOT && errno != EIO) {
        in_kernel = false;  // another file system, or a kernel without it
        continue;
      }
    } else {
      buffer.resize(wanted);
      count = ::pread(in, buffer.data(), wanted, at);
      if (count > 0) count = ::pwrite(out, buffer.data(), static_cast<std::size_t>(count), at);
    }
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) posix::throw_errno(errno, "cannot copy " + from.string() + " to", to);
    if (count == 0) break;  // it has become shorter: compaction gives back what is free
    done += static_cast<std::uint64_t>(count);
    copied(static_cast<std::uint64_t>(count));
  }
  if (::fsync(out) != 0) posix::throw_errno(errno, "cannot sync", to);
}

}  // namespace

// A checkpoint, its page files and the log up to one moment. While the checkpoint lock is held no
// other checkpoint is completed, so what this one names is not written again: pages and vectors
// that the copier reads while they change are of younger nodes, which the copied log holds or the
// copy does not know.
void Index::snapshot(const std::filesystem::path& folder, const Progress& progress) {
  const Use use(*this, true);
  const auto target = std::filesystem::absolute(folder).lexically_normal();
  const auto name = target.filename().empty() ? target.parent_path() : target;
  if (std::filesystem::exists(name)) {
    throw Error(ErrorKind::bad_input, name.string() + " exists: name a new folder");
  }
  const auto own = std::filesystem::canonical(store_->folder);
  const auto above = std::filesystem::weakly_canonical(name.parent_path());
  if (std::mismatch(own.begin(), own.end(), above.begin(), above.end()).first == own.end()) {
    throw Error(ErrorKind::bad_input, name.string() + " is inside of the index: name another");
  }
  if (!std::filesystem::is_directory(name.parent_path())) {
    throw Error(ErrorKind::bad_input, name.parent_path().string() + ": there is no such folder");
  }
  auto partial = name.parent_path() / ".";
  partial += name.filename();
  partial += ".partial";
  std::lock_guard one(checkpoint_);
  const std::uint64_t begin = take_checkpoint();
  std::uint64_t end;
  {
    std::lock_guard lock(commit_);
    end = wal_->rotate();  // the moment; segments before it are closed and durable
  }
  try {
    std::filesystem::remove_all(partial);  // of one that was killed
    std::filesystem::create_directories(partial / "wal");
    std::vector<std::pair<std::filesystem::path, std::filesystem::path>> files;
    for (const auto& entry : std::filesystem::directory_iterator(store_->folder)) {
      const auto& path = entry.path();
      if (!entry.is_regular_file() || path.filename() == "LOCK") continue;
      if (path.extension() != ".partial") files.emplace_back(path, partial / path.filename());
    }
    for (const auto& segment : wal::list_segments(store_->folder / "wal")) {
      if (segment.first_lsn < begin || segment.first_lsn >= end) continue;
      files.emplace_back(segment.path, partial / "wal" / segment.path.filename());
    }
    std::uint64_t total = 0, done = 0;
    for (const auto& [from, to] : files) total += std::filesystem::file_size(from);
    for (const auto& [from, to] : files) {
      copy_file(from, to, [&](std::uint64_t bytes) {
        done = std::min(done + bytes, total);
        if (progress && !progress(done, total)) {
          throw Error(ErrorKind::closed, "the snapshot was stopped; nothing is left of it");
        }
      });
    }
    posix::sync_folder(partial / "wal");
    posix::sync_folder(partial);
    std::filesystem::rename(partial, name);
    posix::sync_folder(name.parent_path());
  } catch (const std::filesystem::filesystem_error& error) {
    std::error_code ignored;
    std::filesystem::remove_all(partial, ignored);
    posix::throw_errno(error.code().value(), "cannot copy the index to", name);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(partial, ignored);
    throw;
  }
}

}  // namespace navis
