#include <doctest/doctest.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "crc32c.hpp"
#include "section_file.hpp"

namespace fs = std::filesystem;
using navis::Error;
using navis::ErrorKind;
using navis::SectionReader;
using navis::SectionWriter;

namespace {

struct Folder {
  explicit Folder(const fs::path& parent = fs::temp_directory_path()) {
    std::string name = (parent / "navis-sections-XXXXXX").string();
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

using Bytes = std::vector<std::byte>;
using Sections = std::map<std::string, Bytes>;

std::mt19937_64 random_from(std::uint64_t seed) { return std::mt19937_64(seed); }

Bytes random_bytes(std::mt19937_64& random, std::size_t count) {
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Sections read(const fs::path& path) {
  Sections sections;
  SectionReader reader(path);
  while (reader.next()) {
    auto& bytes = sections[reader.section()];
    bytes.insert(bytes.end(), reader.bytes().begin(), reader.bytes().end());
  }
  CHECK(!reader.next());
  return sections;
}

std::vector<char> bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void put(const fs::path& path, const std::vector<char>& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(out.good());
}

template <class Call>
std::string refusal(ErrorKind kind, Call call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.kind() == kind);
    return error.what();
  }
  FAIL("not refused");
  return "";
}

void write_small(const fs::path& path) {
  auto random = random_from(3);
  SectionWriter writer(path);
  writer.write("HEAD", random_bytes(random, 33));
  writer.write("NONE", {});
  writer.write("BODY", random_bytes(random, 500));
  writer.write("HEAD", random_bytes(random, 8));
  writer.finish();
}

}  // namespace

TEST_CASE("section file: any sections in any pieces come back") {
  const Folder folder;
  const auto path = folder.path / "checkpoint";
  const char names[][5] = {"AAAA", "TBLE", "pq__", "9 !x"};
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    auto random = random_from(seed);
    // Few large pieces, or many small ones, or both.
    const std::size_t pieces = random() % 60, most = std::size_t{1} << (random() % 22);
    Sections wanted;
    std::vector<std::string> order;
    SectionWriter writer(path);
    for (std::size_t i = 0; i < pieces; ++i) {
      const auto bytes = random_bytes(random, random() % (most + 1));
      const std::size_t which = random() % 3;  // the fourth is not a name
      writer.write(names[which], bytes);
      auto& section = wanted[names[which]];
      section.insert(section.end(), bytes.begin(), bytes.end());
      if (order.empty() || order.back() != names[which]) order.push_back(names[which]);
    }
    const auto bytes_written = writer.finish();
    CHECK(bytes_written == fs::file_size(path));
    CHECK(read(path) == wanted);
    // In the order written.
    std::vector<std::string> found;
    SectionReader reader(path);
    while (reader.next()) {
      CHECK(reader.bytes().size() <= (1U << 20U));
      if (found.empty() || found.back() != reader.section()) found.push_back(reader.section());
    }
    CHECK(found == order);
  }
  SectionWriter writer(path);
  refusal(ErrorKind::bad_input, [&] { writer.write(names[3], {}); });
  refusal(ErrorKind::bad_input, [&] { writer.write("END!", {}); });
  refusal(ErrorKind::bad_input, [&] { writer.write("a\nbc", {}); });
  const std::vector<std::uint32_t> values{1, 2, 3};
  writer.write_values("VALS", std::span<const std::uint32_t>(values));
  writer.finish();
  CHECK(read(path).at("VALS").size() == 12);
}

TEST_CASE("section file: pieces that fill chunks and write blocks exactly") {
  const Folder folder;
  auto random = random_from(1);
  for (const std::size_t extra : {0, 1, 4095}) {
    SectionWriter writer(folder.path / "file");
    // The fourth chunk ends just where the blocks to be written do.
    const std::size_t lead = (4U << 20U) - 4096 - 4 * 16 - 3 * (1U << 20U);
    Bytes wanted;
    for (const std::size_t count : {lead + extra, std::size_t{3U << 20U}, std::size_t{9U << 20U}}) {
      const auto bytes = random_bytes(random, count);
      wanted.insert(wanted.end(), bytes.begin(), bytes.end());
      writer.write(count == lead + extra ? "LEAD" : "REST", bytes);
    }
    writer.finish();
    const auto sections = read(folder.path / "file");
    Bytes found = sections.at("LEAD");
    found.insert(found.end(), sections.at("REST").begin(), sections.at("REST").end());
    CHECK(found == wanted);
  }
}

TEST_CASE("section file: every flip and every truncation is detected") {
  // Ten thousand files: in memory where there is such a folder.
  const Folder folder(fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path());
  const auto path = folder.path / "file";
  write_small(path);
  const auto whole = bytes_of(path);
  CHECK(whole.size() == 4096 + 5 * 16 + 33 + 500 + 8 + 8);
  auto bytes = whole;
  const auto refused = [&] {
    const auto why = refusal(ErrorKind::corrupt, [&] { read(path); });
    CHECK(why.find(path.string() + ", byte ") == 0);
  };
  for (std::size_t at = 0; at < whole.size(); ++at) {
    bytes[at] = static_cast<char>(static_cast<unsigned char>(whole[at]) ^ (1U << at % 8));
    put(path, bytes);
    refused();
    bytes[at] = whole[at];
  }
  for (std::size_t kept = 0; kept < whole.size(); ++kept) {
    put(path, {whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(kept)});
    refused();
  }
  for (const std::size_t more : {1U, 16U, 4096U}) {
    bytes.resize(whole.size() + more);
    put(path, bytes);
    refused();
  }
  // Chunks left out or swapped: each is whole by itself.
  const auto chunk = [&](std::size_t from, std::size_t count) {
    const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(from);
    return std::vector<char>(begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  const auto head = chunk(0, 4096), first = chunk(4096, 49), empty = chunk(4145, 16);
  const auto rest = chunk(4161, whole.size() - 4161);
  const auto join = [&](std::initializer_list<std::vector<char>> parts) {
    std::vector<char> all;
    for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
    put(path, all);
  };
  join({head, first, empty, rest});
  CHECK(read(path).at("BODY").size() == 500);
  join({head, first, rest});
  refused();
  join({head, empty, first, rest});
  refused();
  join({head, first, first, rest});
  refused();
}

TEST_CASE("section file: a newer format and a file that is not one are told apart") {
  const Folder folder;
  const auto path = folder.path / "file";
  write_small(path);
  auto bytes = bytes_of(path);
  bytes[8] = 9;
  const std::uint32_t crc =
      navis::crc32c(navis::crc32c(0, bytes.data(), 12), bytes.data() + 16, 4096 - 16);
  std::memcpy(bytes.data() + 12, &crc, sizeof crc);
  put(path, bytes);
  refusal(ErrorKind::environment, [&] { read(path); });
  put(path, std::vector<char>(5000, 'x'));
  refusal(ErrorKind::corrupt, [&] { read(path); });
  refusal(ErrorKind::io, [&] { read(folder.path / "nothing"); });
  refusal(ErrorKind::io, [&] { SectionWriter(folder.path / "no" / "folder"); });
}

TEST_CASE("section file: the old file stays until finish, and no partial file stays without") {
  const Folder folder;
  const auto path = folder.path / "file", partial = folder.path / "file.partial";
  write_small(path);
  const auto before = bytes_of(path);
  {
    SectionWriter writer(path);
    writer.write("GONE", Bytes(9U << 20U));
    CHECK(fs::exists(partial));
    CHECK(bytes_of(path) == before);
  }
  CHECK(!fs::exists(partial));
  CHECK(bytes_of(path) == before);
  put(partial, std::vector<char>(100'000));  // of a run that was killed
  {
    SectionWriter writer(path);
    writer.write("KEPT", Bytes(100));
    CHECK(bytes_of(path) == before);
    writer.finish();
    refusal(ErrorKind::closed, [&] { writer.finish(); });
    refusal(ErrorKind::closed, [&] { writer.write("LATE", {}); });
  }
  CHECK(!fs::exists(partial));
  CHECK(read(path) == Sections{{"KEPT", Bytes(100)}});
}

TEST_CASE("section file: write_atomically replaces, or leaves what was") {
  const Folder folder;
  const auto path = folder.path / "meta.json";
  const std::string one = "one", two = "and two";
  navis::write_atomically(path, std::as_bytes(std::span(one)));
  navis::write_atomically(path, std::as_bytes(std::span(two)));
  CHECK(bytes_of(path) == std::vector<char>(two.begin(), two.end()));
  fs::create_directory(folder.path / "folder");
  refusal(ErrorKind::io, [&] { navis::write_atomically(folder.path / "folder", {}); });
  CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 2);
}

TEST_CASE("section file: a full disk is Error(no_space) and leaves the old file alone") {
  const Folder folder;
  constexpr int kNotPermitted = 77;
  std::cout.flush();
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int code = 1;
    try {
      if (::unshare(CLONE_NEWNS) != 0 ||
          ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, "") != 0 ||
          ::mount("tmpfs", folder.path.c_str(), "tmpfs", 0, "size=6m") != 0) {
        ::_exit(kNotPermitted);
      }
      const auto path = folder.path / "file";
      write_small(path);
      // Full while writing, and full only when finish() writes the rest.
      for (const std::size_t count : {std::size_t{40U << 20U}, std::size_t{6U << 20U}}) {
        code = 1;
        SectionWriter writer(path);
        try {
          writer.write("MUCH", Bytes(count));
          writer.finish();
        } catch (const Error& error) {
          code = error.kind() == ErrorKind::no_space ? 0 : 2;
        }
        if (code != 0) break;
        if (fs::exists(folder.path / "file.partial") || read(path).at("BODY").size() != 500)
          code = 3;
        try {
          writer.finish();
          code = 4;
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::closed) code = 5;
        }
        if (code != 0) break;
      }
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(code);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNotPermitted) {
    MESSAGE("skipped: mounting a tmpfs is not permitted here");
    return;
  }
  CHECK(WEXITSTATUS(status) == 0);
}
