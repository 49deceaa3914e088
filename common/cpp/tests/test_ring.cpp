#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>

#include "helpers.hpp"

namespace shorthaul::uring {
namespace {

using testing::backends;
using testing::fill;
using testing::finish;
using testing::Folder;

constexpr std::size_t kPage = kAlignment;

// A file of `pages` pages, the bytes of each made from its number.
File make_file(const std::filesystem::path& path, std::size_t pages) {
  auto file = File::open(path, File::Mode::create);
  Buffer page(kPage);
  for (std::size_t at = 0; at < pages; ++at) {
    fill(page.span(0, kPage), at);
    file.write_at(at * kPage, page.span(0, kPage));
  }
  file.sync();
  return file;
}

bool holds(std::span<const std::byte> bytes, std::uint64_t seed) {
  Buffer expected(bytes.size());
  fill(expected.span(0, bytes.size()), seed);
  return std::ranges::equal(bytes, expected.span(0, bytes.size()));
}

// The environment as it was, whatever a test did.
class Environment {
 public:
  explicit Environment(const char* value) {
    const char* found = std::getenv("SHORTHAUL_IO");
    before_ = found == nullptr ? "" : found;
    ::setenv("SHORTHAUL_IO", value, 1);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() { ::setenv("SHORTHAUL_IO", before_.c_str(), 1); }

 private:
  std::string before_;
};

TEST_CASE("random reads and writes at depth, plain and registered") {
  const Folder folder;
  for (const Backend backend : backends()) {
    for (const bool registered : {false, true}) {
      CAPTURE(static_cast<int>(backend));
      CAPTURE(registered);
      constexpr std::size_t kPages = 256;
      constexpr std::size_t kDepth = 32;
      const std::array files{make_file(folder / "a", kPages), make_file(folder / "b", kPages)};
      Ring ring({.depth = kDepth, .backend = backend, .posix_threads = 3});
      CHECK(ring.backend() == backend);
      CHECK(ring.depth() == kDepth);
      Buffer memory(kDepth * kPage);
      const std::array halves{memory.span(kDepth / 2 * kPage, kDepth / 2 * kPage),
                              memory.span(0, kDepth / 2 * kPage)};
      if (registered) {
        CHECK(ring.register_files(files) == (backend == Backend::uring));
        ring.register_buffers(halves);  // false where memory may not be locked
      }
      // Seeds of the pages as they are; a page in flight is left alone.
      std::vector<std::array<std::uint64_t, 2>> seeds(kPages);
      std::vector<std::array<bool, 2>> busy(kPages, {false, false});
      for (std::size_t at = 0; at < kPages; ++at) seeds[at] = {at, at};
      struct Job {
        std::size_t page;
        std::size_t file;
        bool reads;
      };
      std::vector<Job> jobs(kDepth);
      std::vector<std::uint64_t> free(kDepth);
      std::iota(free.begin(), free.end(), 0);
      std::mt19937_64 random(7);  // NOLINT(bugprone-random-generator-seed): a failure must repeat
      std::vector<Completion> done;
      std::size_t asked = 0;
      std::size_t bad = 0;
      while (asked < 3000 || ring.in_flight() > 0) {
        while (asked < 3000 && !free.empty()) {
          const Job job{random() % kPages, random() % 2, random() % 3 != 0};
          if (busy[job.page][job.file]) break;
          const std::uint64_t slot = free.back();
          free.pop_back();
          busy[job.page][job.file] = true;
          jobs[slot] = job;
          const auto place = memory.span(slot * kPage, kPage);
          if (job.reads) {
            fill(place, 12345);
            ring.read(files[job.file], job.page * kPage, place, slot);
          } else {
            fill(place, seeds[job.page][job.file] = random());
            ring.write(files[job.file], job.page * kPage, place, slot);
          }
          ++asked;
        }
        done.clear();
        const std::size_t count = ring.submit_and_wait(random() % 4, done);
        bad += count == done.size() ? 0 : 1;
        for (const Completion& completion : done) {
          const Job& job = jobs[completion.tag];
          bad += completion.error == 0 && completion.bytes == kPage ? 0 : 1;
          const auto place = memory.span(completion.tag * kPage, kPage);
          if (job.reads && !holds(place, seeds[job.page][job.file])) ++bad;
          busy[job.page][job.file] = false;
          free.push_back(completion.tag);
        }
      }
      CHECK(bad == 0);
      for (std::size_t at = 0; at < kPages; ++at) {
        for (std::size_t which : {0U, 1U}) {
          files[which].read_at(at * kPage, memory.span(0, kPage));
          bad += holds(memory.span(0, kPage), seeds[at][which]) ? 0 : 1;
        }
      }
      CHECK(bad == 0);
      const Counters& counters = ring.counters();
      CHECK(counters.reads + counters.writes == 3000);
      CHECK(counters.read_bytes == counters.reads * kPage);
      CHECK(counters.write_bytes == counters.writes * kPage);
      CHECK(counters.continued == 0);
    }
  }
}

TEST_CASE("a read that the file ends in is ENODATA, with what there was") {
  const Folder folder;
  for (const Backend backend : backends()) {
    for (const bool direct : {true, false}) {
      auto file = make_file(folder / "a", 4);
      file.resize(2 * kPage + 1000);
      file = File::open(folder / "a", File::Mode::read, direct);
      Ring ring({.depth = 8, .backend = backend});
      Buffer memory(16 * kPage);
      ring.read(file, 0, memory.span(0, 2 * kPage), 0);              // before the end
      ring.read(file, 0, memory.span(2 * kPage, 4 * kPage), 1);      // over it
      ring.read(file, 2 * kPage, memory.span(6 * kPage, kPage), 2);  // in the last page
      ring.read(file, 4 * kPage, memory.span(7 * kPage, kPage), 3);  // behind it
      ring.read(file, 4 * kPage, memory.span(8 * kPage, 0), 4);      // nothing, behind it
      const auto done = finish(ring);
      REQUIRE(done.size() == 5);
      const std::array<std::pair<int, std::size_t>, 5> expected{
          {{0, 2 * kPage}, {ENODATA, 2 * kPage + 1000}, {ENODATA, 1000}, {ENODATA, 0}, {0, 0}}};
      for (std::size_t at = 0; at < done.size(); ++at) {
        CAPTURE(at);
        CHECK(done[at].tag == at);
        CHECK(done[at].error == expected[at].first);
        CHECK(done[at].bytes == expected[at].second);
      }
      CHECK(holds(memory.span(3 * kPage, kPage), 1));
      CHECK(ring.counters().continued == 2);
      CHECK(ring.counters().read_bytes == 4 * kPage + 2000);
    }
  }
}

TEST_CASE("a write that hits a limit says which, and how far it came") {
  const Folder folder;
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{2 * kPage, before.rlim_max};
  for (const Backend backend : backends()) {
    const auto file = File::open(folder / "a", File::Mode::create);
    Ring ring({.depth = 4, .backend = backend});
    Buffer memory(4 * kPage);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    ring.write(file, 0, memory.span(0, 4 * kPage), 1);
    ring.write(file, 4 * kPage, memory.span(0, kPage), 2);
    const auto done = finish(ring);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    REQUIRE(done.size() == 2);
    CHECK(done[0].error == EFBIG);
    CHECK(done[0].bytes == 2 * kPage);
    CHECK(done[1].error == EFBIG);
    CHECK(done[1].bytes == 0);
    CHECK(ring.counters().continued == 1);
    CHECK(ring.counters().write_bytes == 2 * kPage);
  }
  (void)std::signal(SIGXFSZ, handler);
}

TEST_CASE("a full device is ENOSPC") {
  if (!std::filesystem::exists("/dev/full")) return;
  for (const Backend backend : backends()) {
    const auto file = File::open("/dev/full", File::Mode::write);
    CHECK_FALSE(file.direct());
    Ring ring({.depth = 4, .backend = backend});
    const Buffer memory(kPage);
    ring.write(file, 0, memory.span(0, kPage), 1);
    const auto done = finish(ring);
    REQUIRE(done.size() == 1);
    CHECK(done[0].error == ENOSPC);
    CHECK(done[0].bytes == 0);
  }
}

TEST_CASE("what cannot work completes with an error") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 2);
    const auto readable = File::open(folder / "a", File::Mode::read);
    const auto closed = File::open(folder / "a", File::Mode::read);
    Ring ring({.depth = 16, .backend = backend});
    ::close(closed.fd());
    Buffer memory(2 * kPage);
    const auto page = memory.span(0, kPage);
    void* nowhere =
        ::mmap(nullptr, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);  // NOLINT
    constexpr auto far = std::numeric_limits<std::uint64_t>::max();
    ring.read(File(), 0, page, 0);
    ring.read(closed, 0, page, 1);
    ring.write(readable, 0, page, 2);
    ring.read(file, far, page, 3);  // not the file's position
    ring.read(file, far / 2 - 1, page, 4);
    ring.read(file, 0, {static_cast<std::byte*>(nowhere), kPage}, 5);
    ring.sync(File(), 6);
    if (file.direct()) ring.read(file, 1, page, 7);
    const auto done = finish(ring);
    std::vector<int> errors(done.size());
    std::ranges::transform(done, errors.begin(), &Completion::error);
    std::vector<int> expected{EBADF, EBADF, EBADF, EINVAL, EINVAL, EFAULT, EBADF};
    if (file.direct()) expected.push_back(EINVAL);
    CHECK_MESSAGE(errors == expected, "backend " << static_cast<int>(backend));
    CHECK(ring.in_flight() == 0);
    ::munmap(nowhere, kPage);
  }
}

TEST_CASE("depth is a limit that callers mind") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 1);
    Ring ring({.depth = 3, .backend = backend});
    Buffer memory(4 * kPage);
    for (std::uint64_t tag : {0U, 1U, 2U}) ring.read(file, 0, memory.span(tag * kPage, kPage), tag);
    CHECK(ring.in_flight() == 3);
    CHECK_THROWS_AS(ring.read(file, 0, memory.span(3 * kPage, kPage), 3), std::length_error);
    CHECK_THROWS_AS(ring.sync(file, 3), std::length_error);
    CHECK(ring.counters().reads == 3);
    CHECK(ring.counters().syncs == 0);
    CHECK(finish(ring).size() == 3);
    ring.read(file, 0, memory.span(3 * kPage, kPage), 3);
    CHECK(finish(ring).size() == 1);
  }
  CHECK_THROWS_AS(Ring({.depth = 0}), std::invalid_argument);
  CHECK_THROWS_AS(Ring({.depth = 32769}), std::invalid_argument);
  CHECK_THROWS_AS(Ring({.depth = 8, .posix_threads = 0}), std::invalid_argument);
}

TEST_CASE("waiting") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 8);
    Ring ring({.depth = 8, .backend = backend});
    Buffer memory(8 * kPage);
    std::vector<Completion> done;
    CHECK(ring.submit_and_wait(0, done) == 0);
    CHECK(ring.submit_and_wait(5, done) == 0);  // nothing is in flight: nothing to wait for
    CHECK(ring.counters().submits == 0);
    for (std::uint64_t tag = 0; tag < 8; ++tag) {
      ring.read(file, tag * kPage, memory.span(tag * kPage, kPage), tag);
    }
    CHECK(ring.submit_and_wait(3, done) >= 3);
    CHECK(ring.in_flight() == 8 - done.size());
    // Polling alone gets there too, also where completions wait for the next system call.
    while (done.size() < 8) ring.submit_and_wait(0, done);
    CHECK(ring.in_flight() == 0);
    for (std::uint64_t tag = 0; tag < 8; ++tag) CHECK(holds(memory.span(tag * kPage, kPage), tag));
    CHECK(ring.counters().waits == 1);
    ring.sync(file, 9);
    ring.read(File(), 0, memory.span(0, kPage), 10);
    CHECK(ring.submit_and_wait(2, done) == 2);
    CHECK(done.size() == 10);
    CHECK(ring.counters().syncs == 1);
  }
}

TEST_CASE("a ring that goes waits for what is in flight, started or queued") {
  const Folder folder;
  for (const Backend backend : backends()) {
    auto file = File::open(folder / "a", File::Mode::create);
    file.resize(0);
    Buffer memory(64 * kPage);
    fill(memory.span(0, memory.size()), 3);
    {
      Ring ring({.depth = 64, .backend = backend, .posix_threads = 1});
      std::vector<Completion> done;
      for (std::uint64_t at = 0; at < 64; ++at) {
        ring.write(file, at * kPage, memory.span(at * kPage, kPage), at);
        if (at == 40) ring.submit_and_wait(0, done);
      }
    }
    Buffer found(64 * kPage);
    file.read_at(0, found.span(0, found.size()));
    CHECK(holds(found.span(0, found.size()), 3));
  }
}

TEST_CASE("a ring moves, and what it had to do goes with it") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 2);
    Ring one({.depth = 4, .backend = backend});
    Ring other({.depth = 2, .backend = backend});
    Buffer memory(2 * kPage);
    one.read(file, 0, memory.span(0, kPage), 1);
    other.read(file, kPage, memory.span(kPage, kPage), 2);
    other = std::move(one);  // waits for its own first
    CHECK(holds(memory.span(kPage, kPage), 1));
    CHECK(other.depth() == 4);
    const Ring third = std::move(other);
    CHECK(third.in_flight() == 1);
  }
}

TEST_CASE("requests keep their file open") {
  const Folder folder;
  for (const Backend backend : backends()) {
    auto file = make_file(folder / "a", 1);
    Ring ring({.depth = 4, .backend = backend});
    Buffer memory(kPage);
    ring.read(file, 0, memory.span(0, kPage), 1);
    file = File();
    const auto done = finish(ring);
    CHECK(done[0].error == 0);
    CHECK(holds(memory.span(0, kPage), 0));
  }
}

TEST_CASE("registration is renewed, partial, and not for requests in flight") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const std::array files{make_file(folder / "a", 2), File(), make_file(folder / "b", 2)};
    const auto other = make_file(folder / "c", 2);
    Ring ring({.depth = 4, .backend = backend});
    Buffer memory(4 * kPage);
    const std::array buffers{memory.span(kPage, kPage), std::span<std::byte>()};
    for (int round = 0; round < 3; ++round) {
      ring.register_files(std::span(files).first(round == 1 ? 0 : 3));
      ring.register_buffers(std::span(buffers).first(round == 1 ? 0 : 2));
      fill(memory.span(0, memory.size()), 99);
      ring.read(files[2], 0, memory.span(kPage, kPage), 0);      // both registered
      ring.read(files[0], 0, memory.span(2 * kPage, kPage), 1);  // not the memory
      ring.read(other, kPage, memory.span(0, kPage), 2);         // neither
      CHECK_THROWS_AS(ring.register_files(files), std::logic_error);
      CHECK_THROWS_AS(ring.register_buffers(buffers), std::logic_error);
      for (const Completion& completion : finish(ring)) CHECK(completion.error == 0);
      CHECK(holds(memory.span(0, kPage), 1));
      CHECK(holds(memory.span(kPage, kPage), 0));
      CHECK(holds(memory.span(2 * kPage, kPage), 0));
      ring.read(files[0], 0, memory.span(kPage, 2 * kPage), 3);  // sticks out of the registered
      CHECK(finish(ring)[0].error == 0);
      CHECK(holds(memory.span(2 * kPage, kPage), 1));
    }
  }
}

TEST_CASE("a registered file stays the one that was registered") {
  const Folder folder;
  for (const Backend backend : backends()) {
    Ring ring({.depth = 4, .backend = backend});
    {
      const std::array files{make_file(folder / "a", 1)};
      ring.register_files(files);
    }
    const auto other = make_file(folder / "b", 2);  // would get the descriptor of a closed one
    Buffer memory(kPage);
    ring.read(other, kPage, memory.span(0, kPage), 1);
    CHECK(finish(ring)[0].error == 0);
    CHECK(holds(memory.span(0, kPage), 1));
  }
}

TEST_CASE("signals interrupt nothing") {
  const Folder folder;
  struct sigaction action{};
  struct sigaction before{};
  action.sa_handler = [](int) {};  // without SA_RESTART
  REQUIRE(::sigaction(SIGALRM, &action, &before) == 0);
  const itimerval often{{0, 200}, {0, 200}};
  REQUIRE(::setitimer(ITIMER_REAL, &often, nullptr) == 0);
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 64);
    Ring ring({.depth = 64, .backend = backend});
    Buffer memory(64 * kPage);
    std::size_t bad = 0;
    for (int round = 0; round < 20; ++round) {
      for (std::uint64_t at = 0; at < 64; ++at) {
        ring.read(file, at * kPage, memory.span(at * kPage, kPage), at);
      }
      for (const Completion& completion : finish(ring)) bad += completion.error == 0 ? 0 : 1;
      ring.sync(file, 0);
      bad += finish(ring)[0].error == 0 ? 0 : 1;
    }
    CHECK(bad == 0);
  }
  const itimerval never{};
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
}

TEST_CASE("a ring per thread") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 64);
    std::array<std::size_t, 4> bad{};
    {
      std::vector<std::jthread> threads;
      threads.reserve(bad.size());
      for (std::size_t mine = 0; mine < bad.size(); ++mine) {
        threads.emplace_back([&, mine] {
          Ring ring({.depth = 8, .backend = backend, .posix_threads = 2});
          Buffer memory(8 * kPage);
          std::mt19937_64 random(mine);
          for (int round = 0; round < 25; ++round) {
            std::array<std::size_t, 8> pages{};
            for (std::uint64_t at = 0; at < 8; ++at) {
              pages[at] = random() % 64;
              ring.read(file, pages[at] * kPage, memory.span(at * kPage, kPage), at);
            }
            for (const Completion& completion : finish(ring)) {
              const auto place = memory.span(completion.tag * kPage, kPage);
              if (completion.error != 0 || !holds(place, pages[completion.tag])) ++bad[mine];
            }
          }
        });
      }
    }
    CHECK(bad == std::array<std::size_t, 4>{});
  }
}

TEST_CASE("a ring changes hands, its first owner's thread may end") {
  const Folder folder;
  for (const Backend backend : backends()) {
    const auto file = make_file(folder / "a", 32);
    Ring ring({.depth = 32, .backend = backend});
    Buffer memory(32 * kPage);
    std::vector<Completion> done;
    std::thread([&] {
      for (std::uint64_t at = 0; at < 32; ++at) {
        ring.read(file, at * kPage, memory.span(at * kPage, kPage), at);
        if (at == 20) ring.submit_and_wait(0, done);
      }
    }).join();
    ring.submit_and_wait(32, done);
    CHECK(done.size() == 32);
    for (const Completion& completion : done) {
      CHECK(completion.error == 0);
      CHECK(holds(memory.span(completion.tag * kPage, kPage), completion.tag));
    }
  }
}

TEST_CASE("SHORTHAUL_IO decides what is automatic, and only that") {
  {
    const Environment set("posix");
    CHECK(Ring().backend() == Backend::posix);
    CHECK(Ring().reason() == "SHORTHAUL_IO=posix");
    if (is_available()) CHECK(Ring({.backend = Backend::uring}).backend() == Backend::uring);
  }
  {
    const Environment set("uring");
    if (is_available()) CHECK(Ring().reason().empty());
    CHECK(Ring({.backend = Backend::posix}).reason() == "asked for");
  }
  const Environment set("iouring");
  CHECK_THROWS_WITH_AS(Ring(), "SHORTHAUL_IO=iouring: use uring or posix", std::invalid_argument);
  const Environment none("");
  std::string reason;
  CHECK(is_available(&reason) == reason.empty());
  CHECK(Ring().reason() == reason);
}

}  // namespace
}  // namespace shorthaul::uring
