#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "crc32c.hpp"
#include "wal_testing.hpp"

using namespace wal_testing;

TEST_CASE("wal: truncated at every byte of the last record, it loses that record only") {
  const Folder folder;
  const std::size_t most = 300;
  const auto log = folder.path / "log";
  std::uint64_t before = 0;
  {
    Wal wal(log, 1, options(Durability::group));
    for (std::uint64_t lsn = 1; lsn <= 20; ++lsn) append(wal, lsn, most);
    wal.commit(20);
    before = wal.bytes_on_disk();
    append(wal, 21, most);
    wal.commit(21);
    copy_log(log, folder.path / "copy");
  }
  const auto file = segment(folder.path / "copy", 1);
  auto whole = bytes_of(file);
  const auto length = 24 + (length_of(21, most) + 7) / 8 * 8;
  REQUIRE(whole.size() >= before + length);
  for (std::size_t kept = before; kept < before + length; ++kept) {
    put(file, {whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(kept)});
    CHECK(check(folder.path / "copy", most).next_lsn == 21);
  }
  put(file, {whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(before + length)});
  CHECK(check(folder.path / "copy", most).next_lsn == 22);
  // The log goes on from there, and the torn tail stays where it is without doing harm.
  fs::resize_file(file, before + length - 9);
  CHECK(check(folder.path / "copy", most).dropped_bytes > 0);
  {
    Wal wal(folder.path / "copy", 21, {});
    append(wal, 21, most);
  }
  const auto replay = check(folder.path / "copy", most);
  CHECK(replay.next_lsn == 22);
  CHECK(replay.dropped_bytes == 0);
}

TEST_CASE(
    "wal: a flip of any byte is refused, or drops a tail, and never hands out a wrong record") {
  const std::size_t most = 120;
  for (const bool closed : {true, false}) {
    for (const bool each_committed : {true, false}) {
      const Folder folder;
      const auto log = folder.path / "log", copy = folder.path / "copy";
      std::vector<std::uint64_t> begins;
      {
        Wal wal(log, 1, options(Durability::sync));
        for (std::uint64_t lsn = 1; lsn <= 12; ++lsn) {
          begins.push_back(wal.bytes_on_disk());
          append(wal, lsn, most);
          if (each_committed) wal.commit(lsn);
        }
        begins.push_back(wal.bytes_on_disk());
        wal.flush();
        if (!closed) copy_log(log, copy);
      }
      if (closed) copy_log(log, copy);
      const auto file = segment(copy, 1);
      CHECK(check(copy, most).next_lsn == 13);
      // Of the zeros written ahead a few will do.
      fs::resize_file(file, std::min<std::uint64_t>(fs::file_size(file), begins.back() + 5000));
      CHECK(check(copy, most).next_lsn == 13);
      const auto whole = bytes_of(file);
      const std::size_t end = std::min<std::size_t>(whole.size(), begins.back() + 64);
      std::size_t refused = 0, dropped = 0;
      for (std::size_t at = 0; at < end; ++at) {
        std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
        const auto write_byte = [&](char byte) {
          stream.seekp(static_cast<std::streamoff>(at));
          stream.put(byte).flush();
          REQUIRE(stream.good());
        };
        write_byte(flipped_bit(whole[at], at % 8));
        const auto flipped = static_cast<std::uint64_t>(
            std::upper_bound(begins.begin(), begins.end(), at) - begins.begin());
        try {
          const auto replay = check(copy, most);
          // Records before the flipped one are all there, and of the others none.
          CHECK(replay.next_lsn == std::max<std::uint64_t>(flipped, 1));
          if (at < begins.back() + (closed ? 24 : 64)) CHECK(replay.dropped_bytes > 0);
          CHECK(at >= begins.front());
          ++dropped;
          // All but the last were known to be durable: each was acknowledged before the next.
          const bool proven = closed || (each_committed && flipped < 12);
          if (proven) CHECK(flipped >= 13);
        } catch (const Error& error) {
          CHECK(error.kind() == ErrorKind::corrupt);
          CHECK(std::string(error.what()).find(file.string()) != std::string::npos);
          CHECK(std::string(error.what()).find("byte ") != std::string::npos);
          ++refused;
        }
        write_byte(whole[at]);
      }
      CHECK(refused >= begins.front());
      CHECK(dropped > 0);
    }
  }
}

TEST_CASE(
    "wal: a write of many blocks torn anywhere is a torn tail, though later records are whole") {
  const Folder folder;
  const std::size_t most = 3000;
  const auto log = folder.path / "log", copy = folder.path / "copy";
  std::uint64_t begin = 0, end = 0;
  {
    Wal wal(log, 1, options(Durability::sync));
    for (std::uint64_t lsn = 1; lsn <= 10; ++lsn) append(wal, lsn, most);
    wal.commit(10);
    begin = wal.bytes_on_disk();
    for (std::uint64_t lsn = 11; lsn <= 40; ++lsn) append(wal, lsn, most);
    end = wal.bytes_on_disk();
    wal.flush();
    copy_log(log, copy);
  }
  const auto whole = bytes_of(segment(copy, 1));
  auto random = random_from(1);
  for (int round = 0; round < 60; ++round) {
    auto torn = whole;
    // Of the last write's sectors any did not reach the disk, and keep what was there: zeros, or in
    // its first, partly filled block what the write before it had put there.
    for (std::uint64_t sector = begin / 512; sector * 512 < end; ++sector) {
      if (random() % 4 != 0) continue;
      const auto from = std::max(begin, sector * 512), to = std::min(end, sector * 512 + 512);
      std::fill(torn.begin() + static_cast<std::ptrdiff_t>(from),
                torn.begin() + static_cast<std::ptrdiff_t>(to), '\0');
    }
    put(segment(copy, 1), torn);
    const auto replay = check(copy, most);
    CHECK(replay.next_lsn >= 11);
    {
      Wal wal(copy, replay.next_lsn, options(Durability::sync));
      append(wal, replay.next_lsn, most);
      wal.commit(replay.next_lsn);
    }
    CHECK(check(copy, most).next_lsn == replay.next_lsn + 1);
    copy_log(log, copy);
  }
  // The same damage in a log that was closed in good order is refused.
  auto torn = bytes_of(segment(log, 1));
  std::fill(torn.begin() + static_cast<std::ptrdiff_t>(begin),
            torn.begin() + static_cast<std::ptrdiff_t>(begin) + 512, '\0');
  put(segment(copy, 1), torn);
  const auto why = refusal(ErrorKind::corrupt, [&] { check(copy, most); });
  CHECK(why.find("byte " + std::to_string(begin)) != std::string::npos);
}

TEST_CASE("wal: segments missing, misnamed, swapped or of a newer format are refused") {
  const Folder folder;
  const auto log = folder.path / "log", copy = folder.path / "copy";
  std::vector<std::uint64_t> firsts{1};
  {
    Wal wal(log, 1, options(Durability::sync));
    for (std::uint64_t lsn = 1; lsn <= 30; ++lsn) {
      append(wal, lsn, 500);
      if (lsn % 10 == 0) firsts.push_back(wal.rotate());
    }
  }
  CHECK(firsts == std::vector<std::uint64_t>{1, 11, 21, 31});
  const auto refused = [&](const char* what) {
    const auto why = refusal(ErrorKind::corrupt, [&] { check(copy, 500); });
    CHECK_MESSAGE(why.find(what) != std::string::npos, why);
    CHECK(why.find(copy.string()) != std::string::npos);
  };
  copy_log(log, copy);
  fs::remove(segment(copy, 11));
  refused("follows");
  copy_log(log, copy);
  fs::remove(segment(copy, 1));
  refused("no segment holds record 1");
  CHECK(check(copy, 500, 11).next_lsn == 31);
  fs::remove(segment(copy, 21));
  fs::remove(segment(copy, 31));
  refusal(ErrorKind::corrupt, [&] { check(copy, 500, 25); });  // ends before 25
  CHECK(check(copy, 500, 21).next_lsn == 21);
  copy_log(log, copy);
  fs::copy(segment(copy, 11), copy / "wal-000000000000000B.log");
  refused("not named");
  copy_log(log, copy);
  fs::copy(segment(copy, 11), copy / "wal-000000000000000b (copy).log");
  refused("not named");
  copy_log(log, copy);
  fs::rename(segment(copy, 21), segment(copy, 11));
  refused("first LSN is 21");
  copy_log(log, copy);
  fs::copy(segment(copy, 11), segment(copy, 15));
  refused("follows");
  copy_log(log, copy);
  fs::resize_file(segment(copy, 11), fs::file_size(segment(copy, 11)) - 4096);
  refused("follows");
  copy_log(log, copy);
  fs::resize_file(segment(copy, 21), 0);
  refused("later segments");
  // Damage in segments that a checkpoint has made superfluous is of no interest.
  CHECK(check(copy, 500, 31).next_lsn == 31);
  // Only a whole header can say that it is of a newer format.
  copy_log(log, copy);
  auto newer = bytes_of(segment(copy, 31));
  newer[8] = 2;
  put(segment(copy, 31), newer);
  CHECK(check(copy, 500).next_lsn == 31);
  const std::uint32_t crc =
      navis::crc32c(navis::crc32c(0, newer.data(), 12), newer.data() + 16, 4096 - 16);
  std::memcpy(newer.data() + 12, &crc, sizeof crc);
  put(segment(copy, 31), newer);
  const auto why = refusal(ErrorKind::environment, [&] { check(copy, 500); });
  CHECK(why.find("log format 2") != std::string::npos);
}
