#include <doctest/doctest.h>

#include <fstream>

#include "../closed_mark.hpp"
#include "helpers.hpp"

using namespace navis;
using namespace navis::testing;

namespace {

namespace fs = std::filesystem;

// An index of 300 rows, then 20 more by the log, closed in good order.
fs::path closed_index(const fs::path& at, const Data& data) {
  const auto ids = ids_of(20, 300);
  build(at, data, 300, Layout::selective);
  Index index(at, {});
  index.insert(ids.data(), data.raw(300), 20, 1);
  return at;
}

std::string refusal(const fs::path& folder) {
  try {
    const Index index(folder, {});
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::corrupt);
    return error.what();
  }
  return "";
}

fs::path last_segment(const fs::path& folder) {
  fs::path last;
  for (const auto& entry : fs::directory_iterator(folder / "wal")) {
    last = std::max(last, entry.path());
  }
  return last;
}

}  // namespace

TEST_CASE("a log cut off after closing is refused, wherever it was cut") {
  const Folder folder;
  const Data data = clustered(320, 16);
  const auto sound = closed_index(folder.path / "sound", data);
  const auto size = fs::file_size(last_segment(sound));
  for (const std::uintmax_t kept :
       {std::uintmax_t{0}, std::uintmax_t{4096}, size / 2, size - 512}) {
    const auto copy = folder.path / "copy";
    fs::remove_all(copy);
    fs::copy(sound, copy, fs::copy_options::recursive);
    fs::resize_file(last_segment(copy), kept);
    const std::string said = refusal(copy);
    const bool whole = said.empty();  // only zeros and the log's own mark were cut
    if (whole) {
      CHECK(kept == size - 512);
      CHECK(Index(copy, {}).contains(1319));
    } else {
      CHECK(said.find((copy / "wal").string()) != std::string::npos);
    }
  }
}

TEST_CASE("a log whose segments are missing is refused, closed in good order or not") {
  const Folder folder;
  const Data data = clustered(320, 16);
  const auto sound = closed_index(folder.path / "sound", data);
  fs::copy(sound, folder.path / "last", fs::copy_options::recursive);
  {
    Index index(folder.path / "last", {});  // makes another segment
    const auto ids = ids_of(1, 300);
    index.insert(ids.data(), data.raw(300), 1, 1);
  }
  fs::remove(last_segment(folder.path / "last"));
  CHECK(refusal(folder.path / "last").find("has been cut off") != std::string::npos);
  fs::remove(last_segment(sound));
  CHECK(refusal(sound).find("the log is gone") != std::string::npos);

  // One that died in its first session.
  build(folder.path / "died", data, 300, Layout::selective);
  Index living(folder.path / "died", {});
  const auto ids = ids_of(20, 300);
  living.insert(ids.data(), data.raw(300), 20, 1);
  fs::copy(folder.path / "died", folder.path / "copy", fs::copy_options::recursive);
  fs::remove_all(folder.path / "copy" / "wal");
  CHECK(refusal(folder.path / "copy").find("the log is gone") != std::string::npos);
}

TEST_CASE("the mark: none, or a damaged one, asks for nothing") {
  const Folder folder;
  const Data data = clustered(320, 16);
  const auto sound = closed_index(folder.path / "sound", data);
  const std::uint64_t marked = read_closed_mark(sound / "LOCK");
  CHECK(marked == 21);
  CHECK(read_closed_mark(folder.path / "none") == 0);
  std::string bytes(16, '\0');
  std::ifstream(sound / "LOCK", std::ios::binary).read(bytes.data(), 16);
  for (std::size_t at = 0; at < 12; ++at) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    std::ofstream(sound / "LOCK", std::ios::binary) << flipped;
    CHECK(read_closed_mark(sound / "LOCK") == 0);
  }
  CHECK(Index(sound, {}).contains(1319));
}
