// What the tests of the log share.
#pragma once

#include <doctest/doctest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "wal.hpp"

namespace wal_testing {

namespace fs = std::filesystem;
using navis::Durability;
using navis::Error;
using navis::ErrorKind;
using navis::replay_wal;
using navis::Wal;
using navis::WalOptions;

struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / "navis-wal-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path path;
};

inline std::mt19937_64 random_from(std::uint64_t seed) { return std::mt19937_64(seed); }

inline char flipped_bit(char byte, std::size_t bit) {
  return static_cast<char>(static_cast<unsigned char>(byte) ^ (1U << bit));
}

// What record `lsn` holds in these tests: any change, and any record of another LSN, shows.
inline std::vector<std::byte> payload_of(std::uint64_t lsn, std::size_t count) {
  auto random = random_from(lsn);
  std::vector<std::byte> payload(count);
  for (auto& byte : payload) byte = static_cast<std::byte>(random());
  return payload;
}
inline std::size_t length_of(std::uint64_t lsn, std::size_t most) {
  return lsn * 7919 % (most + 1);
}

inline std::uint64_t append(Wal& wal, std::uint64_t lsn, std::size_t most) {
  const auto given =
      wal.append(static_cast<std::uint32_t>(lsn % 5), payload_of(lsn, length_of(lsn, most)));
  REQUIRE(given == lsn);
  return given;
}

// Replays and checks every record; a wrong one fails the test.
inline navis::WalReplay check(const fs::path& folder, std::size_t most, std::uint64_t from = 1) {
  std::uint64_t expected = from;
  const auto replay = replay_wal(folder, from, [&](auto lsn, auto type, auto payload) {
    const auto wanted = payload_of(lsn, length_of(lsn, most));
    const bool right = lsn == expected && type == lsn % 5 &&
                       std::equal(payload.begin(), payload.end(), wanted.begin(), wanted.end());
    if (!right) FAIL("record ", lsn, " is wrong");
    ++expected;
  });
  CHECK(replay.records == expected - from);
  return replay;
}

inline std::vector<char> bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void put(const fs::path& path, const std::vector<char>& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(out.good());
}
inline fs::path segment(const fs::path& folder, std::uint64_t lsn) {
  char name[32];
  std::snprintf(name, sizeof name, "wal-%016llx.log", static_cast<unsigned long long>(lsn));
  return folder / name;
}

template <class Call>
inline std::string refusal(ErrorKind kind, Call call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.kind() == kind);
    return error.what();
  }
  FAIL("not refused");
  return "";
}

// The log as a power cut would find it now: the open one's files copied.
inline void copy_log(const fs::path& from, const fs::path& to) {
  fs::remove_all(to);
  fs::copy(from, to);
}

inline WalOptions options(Durability durability, std::uint64_t segment_bytes = 64U << 20U) {
  WalOptions result;
  result.durability = durability;
  result.segment_bytes = segment_bytes;
  return result;
}

}  // namespace wal_testing
