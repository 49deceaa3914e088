#include <doctest/doctest.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <new>

#include "helpers.hpp"

namespace shorthaul::uring {
namespace {

using testing::code_of;
using testing::fill;
using testing::Folder;

TEST_CASE("a buffer is aligned, zeroed and rounded up") {
  const Buffer buffer(kAlignment + 1);
  CHECK(buffer.size() == 2 * kAlignment);
  CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % kAlignment == 0);
  const auto all = buffer.span(0, buffer.size());
  CHECK(std::ranges::all_of(all, [](std::byte byte) { return byte == std::byte{0}; }));
  CHECK(Buffer().data() == nullptr);
  CHECK(Buffer(0).size() == 0);
  CHECK_THROWS_AS(Buffer{std::numeric_limits<std::size_t>::max()}, std::bad_alloc);
}

TEST_CASE("a buffer's spans stay inside it") {
  const Buffer buffer(kAlignment);
  CHECK(buffer.span(kAlignment, 0).empty());
  CHECK(buffer.span(8, 16).data() == buffer.data() + 8);
  CHECK_THROWS_AS(buffer.span(1, kAlignment), std::out_of_range);
  CHECK_THROWS_AS(buffer.span(kAlignment + 1, 0), std::out_of_range);
  CHECK_THROWS_AS(buffer.span(8, std::numeric_limits<std::size_t>::max()), std::out_of_range);
}

TEST_CASE("a file on a disk is O_DIRECT beside a buffered descriptor") {
  const Folder folder;
  const auto file = File::open(folder / "a", File::Mode::create);
  CHECK(file.path() == folder / "a");
  if (!file.direct()) return;  // the build lies on a file system without
  const auto bypasses = [](int fd) {
    const auto flags = static_cast<unsigned>(::fcntl(fd, F_GETFL));
    return (flags & static_cast<unsigned>(O_DIRECT)) != 0;
  };
  CHECK(bypasses(file.fd()));
  CHECK_FALSE(bypasses(file.buffered_fd()));
  const auto buffered = File::open(folder / "a", File::Mode::read, false);
  CHECK_FALSE(buffered.direct());
  CHECK(buffered.fd() == buffered.buffered_fd());
}

TEST_CASE("a file in memory is not direct, whatever the kernel accepts") {
  if (!std::filesystem::is_directory("/dev/shm")) return;
  const auto path = std::filesystem::path("/dev/shm") / ("shorthaul-" + std::to_string(::getpid()));
  CHECK_FALSE(File::open(path, File::Mode::create).direct());
  std::filesystem::remove(path);
}

TEST_CASE("modes") {
  const Folder folder;
  const auto path = folder / "a";
  CHECK(code_of([&] { File::open(path, File::Mode::read); }) == ENOENT);
  CHECK(code_of([&] { File::open(path, File::Mode::write); }) == ENOENT);
  Buffer bytes(kAlignment);
  File::open(path, File::Mode::create).write_at(0, bytes.span(0, 100));
  CHECK(File::open(path, File::Mode::write).size() == 100);
  auto readable = File::open(path, File::Mode::read);
  CHECK(code_of([&] { readable.write_at(0, bytes.span(0, 1)); }) == EBADF);
  CHECK(File::open(path, File::Mode::create).size() == 0);
}

TEST_CASE("odd transfers go through the buffered descriptor, whole") {
  const Folder folder;
  auto file = File::open(folder / "a", File::Mode::create);
  Buffer out(3 * kAlignment);
  Buffer in(3 * kAlignment);
  fill(out.span(0, out.size()), 1);
  file.write_at(4095, out.span(1, 5003));
  CHECK(file.size() == 4095 + 5003);
  file.read_at(4095, in.span(7, 5003));
  CHECK(std::ranges::equal(in.span(7, 5003), out.span(1, 5003)));
  file.read_at(0, {});
  CHECK(code_of([&] { file.read_at(4095, in.span(0, 5004)); }) == ENODATA);
}

TEST_CASE("sizes") {
  const Folder folder;
  auto file = File::open(folder / "a", File::Mode::create);
  file.allocate(0);
  file.allocate(10000);
  CHECK(file.size() == 10000);
  file.allocate(5000);
  CHECK(file.size() == 10000);
  file.resize(123);
  CHECK(file.size() == 123);
  file.sync();
  const auto huge = std::numeric_limits<std::uint64_t>::max();
  CHECK(code_of([&] { file.resize(huge); }) == EINVAL);
  CHECK(code_of([&] { file.allocate(huge); }) == EINVAL);
}

TEST_CASE("an error names the path") {
  const Folder folder;
  try {
    File::open(folder / "missing", File::Mode::read);
    FAIL("opened");
  } catch (const std::system_error& error) {
    CHECK(std::string(error.what()).find((folder / "missing").string()) != std::string::npos);
    CHECK(error.code() == std::errc::no_such_file_or_directory);
  }
}

TEST_CASE("no file") {
  File file;
  CHECK_FALSE(file);
  CHECK(file.fd() == -1);
  CHECK(file.buffered_fd() == -1);
  CHECK_FALSE(file.direct());
  CHECK(file.path().empty());
  Buffer bytes(kAlignment);
  CHECK(code_of([&] { (void)file.size(); }) == EBADF);
  CHECK(code_of([&] { file.sync(); }) == EBADF);
  CHECK(code_of([&] { file.resize(1); }) == EBADF);
  CHECK(code_of([&] { file.allocate(1); }) == EBADF);
  CHECK(code_of([&] { file.read_at(0, bytes.span(0, 1)); }) == EBADF);
  CHECK(code_of([&] { file.write_at(0, bytes.span(0, 1)); }) == EBADF);
}

TEST_CASE("copies share the descriptors, which close with the last") {
  const Folder folder;
  auto file = File::open(folder / "a", File::Mode::create);
  const int fd = file.fd();
  File copy = file;
  CHECK(copy.fd() == fd);
  file = File();
  CHECK(::fcntl(fd, F_GETFD) >= 0);
  copy = File();
  CHECK(::fcntl(fd, F_GETFD) == -1);
}

}  // namespace
}  // namespace shorthaul::uring
