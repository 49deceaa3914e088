// Aligned memory, and files with an O_DIRECT and a buffered descriptor.
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <system_error>

#include "shorthaul/uring.hpp"

namespace shorthaul::uring {

Buffer::Buffer(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() - kHugePage) throw std::bad_alloc();
  size_ = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (size_ == 0) return;
  // Of scattered small pages 1 MiB is two requests: huge ones are up to 2.7 times as fast.
  const std::size_t page = size_ >= kHugePage ? kHugePage : kAlignment;
  const std::size_t room = (size_ + page - 1) / page * page;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(page, room)));
  if (!data_) throw std::bad_alloc();
  if (page == kHugePage) ::madvise(data_.get(), room, MADV_HUGEPAGE);
  std::memset(data_.get(), 0, size_);
}

void Buffer::Free::operator()(std::byte* data) const { std::free(data); }
std::byte* Buffer::data() const { return data_.get(); }
std::size_t Buffer::size() const { return size_; }

std::span<std::byte> Buffer::span(std::size_t offset, std::size_t count) const {
  if (offset > size_ || count > size_ - offset) throw std::out_of_range("Buffer::span");
  return {data_.get() + offset, count};
}

struct File::Handle {
  std::filesystem::path path;
  int buffered = -1;
  int direct = -1;  // -1: the file system has no O_DIRECT, or none was asked for

  explicit Handle(std::filesystem::path of) : path(std::move(of)) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (direct >= 0) ::close(direct);
    if (buffered >= 0) ::close(buffered);
  }
};

namespace {

[[noreturn]] void fail(int code, const char* what, const std::filesystem::path& path) {
  throw std::system_error(code, std::generic_category(), what + (" " + path.string()));
}

int opened(const File& file) {
  const int fd = file.buffered_fd();
  if (fd < 0) fail(EBADF, "no file", {});
  return fd;
}

// New Linux accepts O_DIRECT there and ignores it: the cache is all there is.
bool is_tmpfs(int fd) {
  struct statfs found{};
  return ::fstatfs(fd, &found) == 0 && found.f_type == TMPFS_MAGIC;
}

}  // namespace

File File::open(const std::filesystem::path& path, Mode mode, bool direct) {
  auto handle = std::make_shared<Handle>(path);
  // NOLINTBEGIN(bugprone-signed-bitwise): the system's flags are signed
  const int access = (mode == Mode::read ? O_RDONLY : O_RDWR) | O_CLOEXEC;
  const int making = access | (mode == Mode::create ? O_CREAT | O_TRUNC : 0);
  const int bypassing = access | O_DIRECT;
  // NOLINTEND(bugprone-signed-bitwise)
  handle->buffered = ::open(path.c_str(), making, 0666);
  if (handle->buffered < 0) fail(errno, "open", path);
  if (direct && !is_tmpfs(handle->buffered)) {
    // Not by the path again, which may by now be another file's.
    const std::string same = "/proc/self/fd/" + std::to_string(handle->buffered);
    handle->direct = ::open(same.c_str(), bypassing);
    if (handle->direct < 0 && errno != EINVAL && errno != ENOTSUP) fail(errno, "open", path);
  }
  File file;
  file.handle_ = std::move(handle);
  return file;
}

File::operator bool() const { return handle_ != nullptr; }
int File::buffered_fd() const { return handle_ ? handle_->buffered : -1; }
int File::fd() const { return direct() ? handle_->direct : buffered_fd(); }
bool File::direct() const { return handle_ && handle_->direct >= 0; }

const std::filesystem::path& File::path() const {
  static const std::filesystem::path none;
  return handle_ ? handle_->path : none;
}

std::uint64_t File::size() const {
  struct stat found{};
  if (::fstat(opened(*this), &found) != 0) fail(errno, "stat", path());
  return static_cast<std::uint64_t>(found.st_size);
}

void File::resize(std::uint64_t bytes) {
  if (::ftruncate(opened(*this), static_cast<off_t>(bytes)) != 0) fail(errno, "truncate", path());
}

void File::allocate(std::uint64_t bytes) {
  int code = bytes == 0 ? 0 : EINTR;
  while (code == EINTR) code = ::posix_fallocate(opened(*this), 0, static_cast<off_t>(bytes));
  if (code != 0) fail(code, "allocate", path());
}

void File::sync() {
  if (::fdatasync(opened(*this)) != 0) fail(errno, "sync", path());
}

void File::read_at(std::uint64_t offset, std::span<std::byte> into) const {
  while (!into.empty()) {
    const auto at = static_cast<off_t>(offset);
    const ssize_t got = ::pread(opened(*this), into.data(), into.size(), at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) fail(got == 0 ? ENODATA : errno, "read", path());
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

void File::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto at = static_cast<off_t>(offset);
    const ssize_t put = ::pwrite(opened(*this), bytes.data(), bytes.size(), at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) fail(put == 0 ? EIO : errno, "write", path());
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
}

}  // namespace shorthaul::uring
