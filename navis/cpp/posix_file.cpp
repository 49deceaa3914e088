#include "posix_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

namespace navis::posix {
namespace {

constexpr std::size_t kWindowBytes = 2U << 20U;

template <class Call>
auto retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

std::size_t round_up(std::size_t count) {
  return (count + kPageBytes - 1) / kPageBytes * kPageBytes;
}

}  // namespace

void throw_errno(int error, const std::string& doing, const std::filesystem::path& path) {
  throw Error(kind_of(error),
              doing + " " + path.string() + ": " + std::generic_category().message(error));
}

void AlignedBuffer::reserve(std::size_t count) {
  if (count <= capacity_) return;
  const std::size_t wanted = round_up(std::max(count, capacity_ * 2));
  std::unique_ptr<std::byte, Free> grown(
      static_cast<std::byte*>(std::aligned_alloc(kPageBytes, wanted)));
  if (!grown) throw std::bad_alloc();
  if (size_ > 0) std::memcpy(grown.get(), bytes_.get(), size_);
  bytes_ = std::move(grown);
  capacity_ = wanted;
}

std::byte* AlignedBuffer::extend(std::size_t count) {
  reserve(size_ + count);
  std::byte* place = bytes_.get() + size_;
  size_ += count;
  return place;
}

void AlignedBuffer::append(const void* bytes, std::size_t count) {
  if (count > 0) std::memcpy(extend(count), bytes, count);
}

void AlignedBuffer::append_zeros(std::size_t count) {
  if (count > 0) std::memset(extend(count), 0, count);
}

void AlignedBuffer::pad_to_page() { append_zeros(round_up(size_) - size_); }

File::File(std::filesystem::path path, Open how, bool direct) : path_(std::move(path)) {
  unsigned flags = O_CLOEXEC;
  if (how == Open::read) flags |= unsigned{O_RDONLY};
  if (how == Open::create_new) flags |= unsigned{O_RDWR | O_CREAT | O_EXCL};
  if (how == Open::replace) flags |= unsigned{O_RDWR | O_CREAT | O_TRUNC};
  const auto open_with = [&](unsigned more) {
    return retry([&] { return ::open(path_.c_str(), static_cast<int>(flags | more), 0644); });
  };
  if (direct) fd_ = open_with(O_DIRECT);
  direct_ = fd_ >= 0;
  if (fd_ < 0 && direct && errno == EINVAL && how == Open::create_new) {
    // The refusal comes after the name was made.
    ::unlink(path_.c_str());
    errno = EINVAL;
  }
  if (fd_ < 0 && (!direct || errno == EINVAL)) fd_ = open_with(0);
  if (fd_ < 0) throw_errno(errno, how == Open::read ? "cannot open" : "cannot create", path_);
}

File::~File() { ::close(fd_); }

// Some file systems take O_DIRECT when a file is opened and refuse the first transfer.
bool File::gave_up_direct() {
  if (!direct_ || errno != EINVAL) return false;
  direct_ = false;
  const int flags = ::fcntl(fd_, F_GETFL);
  if (flags < 0) return false;
  const unsigned buffered = static_cast<unsigned>(flags) & ~unsigned{O_DIRECT};
  return ::fcntl(fd_, F_SETFL, static_cast<int>(buffered)) == 0;
}

void File::write_at(std::uint64_t offset, const std::byte* bytes, std::size_t count) {
  while (count > 0) {
    const ssize_t done =
        retry([&] { return ::pwrite(fd_, bytes, count, static_cast<off_t>(offset)); });
    if (done < 0) {
      if (gave_up_direct()) continue;
      throw_errno(errno, "cannot write", path_);
    }
    if (done == 0) throw_errno(EIO, "cannot write", path_);
    bytes += done;
    offset += static_cast<std::uint64_t>(done);
    count -= static_cast<std::size_t>(done);
  }
}

std::size_t File::read_at(std::uint64_t offset, std::byte* bytes, std::size_t count) {
  std::size_t got = 0;
  while (got < count) {
    const ssize_t done = retry(
        [&] { return ::pread(fd_, bytes + got, count - got, static_cast<off_t>(offset + got)); });
    if (done < 0) {
      if (gave_up_direct()) continue;
      throw_errno(errno, "cannot read", path_);
    }
    if (done == 0) break;
    got += static_cast<std::size_t>(done);
    // O_DIRECT stops at an odd count only at the end, and refuses to be asked from there.
    if (direct_ && got % kPageBytes != 0) break;
  }
  return got;
}

void File::truncate(std::uint64_t size) {
  if (retry([&] { return ::ftruncate(fd_, static_cast<off_t>(size)); }) != 0) {
    throw_errno(errno, "cannot truncate", path_);
  }
}

// After any other failure than an interruption a second try proves nothing: the kernel reports a
// lost write once.
void File::sync_data() {
  if (retry([&] { return ::fdatasync(fd_); }) != 0) throw_errno(errno, "cannot sync", path_);
}

void File::sync_all() {
  if (retry([&] { return ::fsync(fd_); }) != 0) throw_errno(errno, "cannot sync", path_);
}

std::uint64_t File::size() const {
  struct stat status{};
  if (::fstat(fd_, &status) != 0) throw_errno(errno, "cannot stat", path_);
  return static_cast<std::uint64_t>(status.st_size);
}

Window::Window(const std::filesystem::path& path, bool direct)
    : file_(path, Open::read, direct), size_(file_.size()) {}

std::span<const std::byte> Window::at(std::uint64_t offset, std::size_t count) {
  if (offset >= size_) return {};
  count = static_cast<std::size_t>(std::min<std::uint64_t>(count, size_ - offset));
  if (offset < start_ || offset + count > start_ + buffer_.size()) {
    const std::uint64_t start = offset / kPageBytes * kPageBytes;
    const std::uint64_t end = start_ + buffer_.size();
    // What the buffer has of the new window is not read again; only the file's end is not whole
    // pages, and nothing is asked for behind it.
    const bool overlaps = start >= start_ && start < end && end % kPageBytes == 0;
    const auto kept = overlaps ? static_cast<std::size_t>(end - start) : 0;
    if (kept > 0) std::memmove(buffer_.data(), buffer_.data() + (start - start_), kept);
    buffer_.clear();
    buffer_.extend(kept);
    start_ = start;
    const auto left =
        static_cast<std::size_t>(std::min<std::uint64_t>(size_ - start, kWindowBytes));
    const auto room = round_up(std::max(left, count + kPageBytes)) - kept;
    std::byte* place = buffer_.extend(room);
    const std::size_t got = file_.read_at(start_ + kept, place, room);
    buffer_.clear();
    buffer_.extend(kept + got);
    if (offset + count > start_ + kept + got) {
      throw Error(ErrorKind::io,
                  "cannot read " + file_.path().string() + ": it has become shorter");
    }
  }
  return {buffer_.data() + (offset - start_), count};
}

void sync_folder(const std::filesystem::path& folder) {
  const auto name = folder.empty() ? std::filesystem::path(".") : folder;
  const int fd = retry([&] { return ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd < 0) throw_errno(errno, "cannot open", name);
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  // Some network file systems have no such call for folders, and need none.
  if (result != 0 && error != EINVAL && error != ENOTSUP) throw_errno(error, "cannot sync", name);
}

}  // namespace navis::posix
