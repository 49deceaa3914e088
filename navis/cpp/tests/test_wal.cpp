#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "wal_testing.hpp"

using namespace wal_testing;

namespace {

// Runs in a child process, where a check that fails is exit code 1.
int in_child(const std::function<bool()>& body) {
  std::cout.flush();  // not twice
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int code = 1;
    try {
      code = body() ? 0 : 1;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(code);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

}  // namespace

TEST_CASE("wal: what is appended is replayed, over restarts and segments, under every policy") {
  for (const auto durability : {Durability::sync, Durability::group, Durability::none}) {
    for (const bool direct : {true, false}) {
      const Folder folder;
      std::uint64_t next = 1;
      for (int run = 0; run < 3; ++run) {
        auto chosen = options(durability, 100'000);
        chosen.direct = direct;
        Wal wal(folder.path, next, chosen);
        for (int i = 0; i < 100; ++i) {
          append(wal, next, 9000);
          if (i % 7 == 0) wal.commit(next);
          ++next;
        }
        wal.flush();
        CHECK(wal.durable_lsn() == next - 1);
        CHECK(wal.next_lsn() == next);
      }
      const auto replay = check(folder.path, 9000);
      CHECK(replay.next_lsn == next);
      CHECK(replay.dropped_bytes == 0);
      CHECK(check(folder.path, 9000, 250).records == next - 250);
      CHECK(std::distance(fs::directory_iterator(folder.path), {}) > 3);
    }
  }
}

TEST_CASE("wal: records of any size, empty and larger than a segment and than the buffer") {
  const Folder folder;
  const std::size_t sizes[] = {0, 1, 7, 8, 4048, 4072, 4096, 70'000, 9U << 20U, 0, 3};
  {
    Wal wal(folder.path, 1, options(Durability::sync, 65'536));
    std::uint64_t lsn = 0;
    for (const auto size : sizes) {
      ++lsn;
      REQUIRE(wal.append(0, payload_of(lsn, size)) == lsn);
    }
    wal.commit(lsn);
    const auto bytes = wal.counters().payload_bytes;
    CHECK(bytes >= (9U << 20U));
    CHECK(wal.counters().written_bytes >= bytes);
    CHECK(wal.bytes_on_disk() >= bytes);
  }
  std::size_t at = 0;
  replay_wal(folder.path, 1, [&](auto lsn, auto, auto payload) {
    const auto wanted = payload_of(lsn, sizes[at++]);
    CHECK(std::equal(payload.begin(), payload.end(), wanted.begin(), wanted.end()));
  });
  CHECK(at == std::size(sizes));
  Wal wal(folder.path, 12, options(Durability::none));
  std::vector<std::byte> large(navis::kWalMaxPayload + 1);
  refusal(ErrorKind::bad_input, [&] { wal.append(0, large); });
  refusal(ErrorKind::bad_input, [&] { wal.flush(), Wal(folder.path, 0, {}); });
}

TEST_CASE("wal: an empty, missing or never begun log") {
  const Folder folder;
  CHECK(check(folder.path / "none", 0).next_lsn == 1);
  CHECK(check(folder.path, 0, 17).next_lsn == 17);
  {
    const Wal wal(folder.path / "a" / "log", 5, {});
  }
  CHECK(check(folder.path / "a" / "log", 0, 5).next_lsn == 5);
  // The same start again: nothing was in it.
  {
    const Wal wal(folder.path / "a" / "log", 5, {});
  }
  // A crash while the segment was made: no header, half of one, an empty file.
  for (const std::size_t kept : {0U, 17U, 100U, 4095U}) {
    fs::resize_file(segment(folder.path / "a" / "log", 5), kept);
    CHECK(check(folder.path / "a" / "log", 0, 5).next_lsn == 5);
  }
  Wal wal(folder.path / "a" / "log", 5, {});
  CHECK(append(wal, 5, 100) == 5);
  refusal(ErrorKind::bad_input, [&] { wal.commit(6); });
  wal.commit(5);
  CHECK(wal.rotate() == 6);
  CHECK(wal.rotate() == 6);
  refusal(ErrorKind::bad_input, [&] { Wal(folder.path / "a" / "log", 5, {}); });
  refusal(ErrorKind::bad_input, [&] { Wal(folder.path / "a" / "log", 3, {}); });
}

TEST_CASE("wal: rotate and remove_before keep exactly what is needed") {
  const Folder folder;
  Wal wal(folder.path, 1, options(Durability::sync));
  for (std::uint64_t lsn = 1; lsn <= 100; ++lsn) {
    append(wal, lsn, 5000);
    if (lsn % 25 == 0) CHECK(wal.rotate() == lsn + 1);
    if (lsn % 25 == 0) CHECK(wal.durable_lsn() == lsn);
  }
  const auto all = wal.bytes_on_disk();
  wal.remove_before(26);
  CHECK(!fs::exists(segment(folder.path, 1)));
  CHECK(wal.bytes_on_disk() < all);
  wal.remove_before(75);  // 75 is in the segment of 51
  CHECK(!fs::exists(segment(folder.path, 26)));
  CHECK(fs::exists(segment(folder.path, 51)));
  CHECK(check(folder.path, 5000, 75).next_lsn == 101);
  wal.remove_before(1000);
  CHECK(fs::exists(segment(folder.path, 101)));
  CHECK(check(folder.path, 5000, 101).next_lsn == 101);
  append(wal, 101, 5000);
  wal.commit(101);
  CHECK(check(folder.path, 5000, 101).next_lsn == 102);
}

TEST_CASE("wal: threads commit together, each record once and in one order") {
  for (const auto durability : {Durability::sync, Durability::group, Durability::none}) {
    const Folder folder;
    constexpr int kThreads = 8, kEach = 150;
    {
      auto chosen = options(durability, 200'000);
      chosen.window_s = 0.002;
      Wal wal(folder.path, 1, chosen);
      std::vector<std::thread> threads;
      threads.reserve(kThreads);
      for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          std::uint64_t previous = 0;
          for (int i = 0; i < kEach; ++i) {
            std::vector<std::byte> payload(static_cast<std::size_t>(t * 100 + 8));
            std::memcpy(payload.data(), &t, sizeof t);
            std::memcpy(payload.data() + 4, &i, sizeof i);
            const auto lsn = wal.append(9, payload);
            if (lsn <= previous) std::abort();
            previous = lsn;
            wal.commit(lsn);
            if (durability == Durability::sync && wal.durable_lsn() < lsn) std::abort();
            if (i == 50 && t == 3) wal.remove_before(wal.rotate() > 40 ? 2 : 1);
          }
        });
      }
      for (auto& thread : threads) thread.join();
      const auto counters = wal.counters();
      CHECK(counters.records == kThreads * kEach);
      CHECK(counters.payload_bytes == 150 * 8 * 358);
      if (durability == Durability::sync) CHECK(counters.syncs < kThreads * kEach + 20);
    }
    std::vector<int> next(kThreads);
    replay_wal(folder.path, 1, [&](auto, auto, auto payload) {
      int t = 0, i = 0;
      std::memcpy(&t, payload.data(), sizeof t);
      std::memcpy(&i, payload.data() + 4, sizeof i);
      CHECK(i == next.at(static_cast<std::size_t>(t))++);
    });
    CHECK(next == std::vector<int>(kThreads, kEach));
  }
}

TEST_CASE("wal: group makes durable within the window, none when asked") {
  const Folder folder;
  auto chosen = options(Durability::group);
  chosen.window_s = 0.02;
  Wal group(folder.path / "group", 1, chosen);
  for (std::uint64_t lsn = 1; lsn <= 3; ++lsn) {
    append(group, lsn, 100);
    group.commit(lsn);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (group.durable_lsn() < lsn && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(group.durable_lsn() == lsn);
  }
  Wal none(folder.path / "none", 1, options(Durability::none));
  append(none, 1, 100);
  none.commit(1);
  CHECK(none.durable_lsn() == 0);
  CHECK(check(folder.path / "none", 100).records == 0);
  none.flush();
  CHECK(none.durable_lsn() == 1);
  CHECK(check(folder.path / "none", 100).records == 1);
}

TEST_CASE("wal: what was acknowledged before SIGKILL is replayed") {
  constexpr std::size_t kMost = 2000;
  for (const auto durability : {Durability::sync, Durability::group}) {
    const Folder folder;
    std::uint64_t next = 1;
    for (int round = 0; round < 12; ++round) {
      int ends[2];
      REQUIRE(::pipe(ends) == 0);
      std::cout.flush();  // not twice
      const pid_t child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        ::close(ends[0]);
        try {
          Wal wal(folder.path, next, options(durability, 300'000));
          for (std::uint64_t lsn = next;; ++lsn) {
            wal.append(static_cast<std::uint32_t>(lsn % 5), payload_of(lsn, length_of(lsn, kMost)));
            if (lsn % 3 != 0) continue;
            wal.commit(lsn);
            if (::write(ends[1], &lsn, sizeof lsn) != sizeof lsn) ::_exit(1);
          }
        } catch (...) {
          ::_exit(3);
        }
      }
      ::close(ends[1]);
      std::uint64_t acknowledged = 0, lsn = 0;
      std::size_t seen = 0;
      while (::read(ends[0], &lsn, sizeof lsn) == sizeof lsn) {
        acknowledged = lsn;
        // The pipe is still drained after the kill: what is in it was acknowledged too.
        if (++seen == 20 + static_cast<std::size_t>(round) * 13) ::kill(child, SIGKILL);
      }
      ::close(ends[0]);
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      REQUIRE(WIFSIGNALED(status));
      const auto replay = check(folder.path, kMost);
      CHECK(replay.next_lsn > acknowledged);
      CHECK(acknowledged > next);
      next = replay.next_lsn;
    }
  }
}

TEST_CASE("wal: the first failure stays") {
  const Folder folder;
  for (const auto durability : {Durability::sync, Durability::group, Durability::none}) {
    const auto log = folder.path / std::to_string(static_cast<int>(durability));
    CHECK(in_child([&] {
            std::signal(SIGXFSZ, SIG_IGN);
            const rlimit limit{300'000, 300'000};
            if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
            Wal wal(log, 1, options(durability));
            std::string first;
            const std::vector<std::byte> payload(10'000);
            for (int i = 0; i < 1000 && first.empty(); ++i) {
              try {
                const auto lsn = wal.append(0, payload);
                if (durability == Durability::none) {
                  if (lsn % 100 == 0) wal.flush();
                } else {
                  wal.commit(lsn);
                }
              } catch (const Error& error) {
                if (error.kind() != ErrorKind::no_space) return false;
                first = error.what();
              }
            }
            if (first.find(log.string()) == std::string::npos) return false;
            const std::function<void()> calls[] = {[&] { wal.append(0, payload); },
                                                   [&] { wal.commit(1); }, [&] { wal.flush(); },
                                                   [&] { wal.rotate(); }};
            for (const auto& call : calls) {
              try {
                call();
                return false;
              } catch (const Error& error) {
                if (error.kind() != ErrorKind::no_space || error.what() != first) return false;
              }
            }
            return true;
          }) == 0);
    std::uint64_t records = 0;
    replay_wal(log, 1, [&](auto, auto, auto) { ++records; });
    CHECK(records <= 29);
    if (durability == Durability::group) CHECK(records == 29);
  }
}

TEST_CASE("wal: a full disk is Error(no_space) and loses nothing acknowledged") {
  const Folder folder;
  constexpr int kNotPermitted = 77;
  int permitted = kNotPermitted;
  const int result = in_child([&] {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, "") != 0 ||
        ::mount("tmpfs", folder.path.c_str(), "tmpfs", 0, "size=3m") != 0) {
      ::_exit(kNotPermitted);
    }
    std::uint64_t acknowledged = 0;
    try {
      Wal wal(folder.path / "log", 1, options(Durability::sync, 500'000));
      for (std::uint64_t lsn = 1; lsn < 100'000; ++lsn) {
        append(wal, lsn, 3000);
        wal.commit(lsn);
        acknowledged = lsn;
      }
      return false;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::no_space) return false;
      if (std::string(error.what()).find("log/wal-") == std::string::npos) return false;
    }
    const auto replay = check(folder.path / "log", 3000);
    if (acknowledged < 1000 || replay.next_lsn <= acknowledged) return false;
    // With room again the log goes on.
    fs::remove(segment(folder.path / "log", 1));
    Wal wal(folder.path / "log", replay.next_lsn, options(Durability::sync, 500'000));
    wal.commit(wal.append(0, payload_of(1, 100)));
    return true;
  });
  permitted = result;
  if (permitted == kNotPermitted) {
    MESSAGE("skipped: mounting a tmpfs is not permitted here");
    return;
  }
  CHECK(result == 0);
}
