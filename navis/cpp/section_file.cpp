#include "section_file.hpp"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstddef>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include "crc32c.hpp"
#include "io_budget.hpp"
#include "posix_file.hpp"

namespace navis {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr char kMagic[] = "NAVISSEC";
constexpr char kEnd[] = "END!";
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::size_t kChunkBytes = 1U << 20U;
// Written at once: enough that the time goes to the device.
constexpr std::size_t kWriteBytes = 4U << 20U;

struct FileHeader {
  char magic[8];
  std::uint32_t version, crc;  // crc: of the block, without this field
};

struct ChunkHeader {
  char section[4];
  std::uint32_t bytes, crc, sequence;  // crc: of the other fields, then the payload
};
static_assert(sizeof(ChunkHeader) == 16);

std::uint32_t header_crc(const std::byte* block) {
  constexpr std::size_t at = offsetof(FileHeader, crc);
  constexpr std::size_t behind = at + sizeof(std::uint32_t);
  return crc32c(crc32c(0, block, at), block + behind, kPageBytes - behind);
}

std::uint32_t chunk_crc(const ChunkHeader& header, const std::byte* payload) {
  ChunkHeader fields = header;
  fields.crc = 0;
  return crc32c(crc32c(0, &fields, sizeof fields), payload, header.bytes);
}

std::filesystem::path with_suffix(std::filesystem::path path, const char* suffix) {
  path += suffix;
  return path;
}

// Gives the new file its name. Until this returns the old one, if any, is what a crash leaves.
void put_in_place(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  std::filesystem::rename(from, to, error);
  if (error) posix::throw_errno(error.value(), "cannot rename " + from.string() + " to", to);
  posix::sync_folder(to.parent_path());
}

void remove_quietly(const std::filesystem::path& path) {
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
}

}  // namespace

struct SectionWriter::Impl {
  Impl(std::filesystem::path given, Pace asked)
      : path(std::move(given)), partial(with_suffix(path, ".partial")), pace(std::move(asked)) {
    file = std::make_unique<posix::File>(partial, posix::Open::replace, true);
    buffer.reserve(kWriteBytes + kChunkBytes + 2 * kPageBytes);
    buffer.append_zeros(kPageBytes);
    FileHeader header{};
    std::memcpy(header.magic, kMagic, sizeof header.magic);
    header.version = kFormatVersion;
    std::memcpy(buffer.data(), &header, sizeof header);
    header.crc = header_crc(buffer.data());
    std::memcpy(buffer.data(), &header, sizeof header);
  }

  // After a failure nothing is known about the file, and finish() must not give it its name.
  void require_open() const {
    if (!file)
      throw Error(ErrorKind::closed, path.string() + " is finished, or its writing failed");
  }

  void write(const char* section, std::span<const std::byte> bytes) {
    if (!chunk_open || std::memcmp(chunk.section, section, sizeof chunk.section) != 0) {
      begin_chunk(section);
    }
    while (true) {
      const std::size_t held = buffer.size() - chunk_at - sizeof chunk;
      const std::size_t count = std::min(bytes.size(), kChunkBytes - held);
      buffer.append(bytes.data(), count);
      bytes = bytes.subspan(count);
      if (bytes.empty()) return;
      begin_chunk(section);
    }
  }

  // The open chunk stays in the buffer until it ends, as its header comes first.
  void begin_chunk(const char* section) {
    end_chunk();
    if (buffer.size() >= kWriteBytes) write_blocks(buffer.size() / kPageBytes * kPageBytes);
    chunk_at = buffer.size();
    chunk_open = true;
    std::memcpy(chunk.section, section, sizeof chunk.section);
    chunk.sequence = chunks++;
    buffer.append(&chunk, sizeof chunk);
  }

  void end_chunk() {
    if (!chunk_open) return;
    const std::byte* payload = buffer.data() + chunk_at + sizeof chunk;
    chunk.bytes = static_cast<std::uint32_t>(buffer.size() - chunk_at - sizeof chunk);
    chunk.crc = chunk_crc(chunk, payload);
    std::memcpy(buffer.data() + chunk_at, &chunk, sizeof chunk);
    chunk_open = false;
  }

  void write_blocks(std::size_t count) {
    const std::size_t portion = pace ? IoBudget::kPortion : count;
    for (std::size_t done = 0; done < count; done += portion) {
      const std::size_t now = std::min(portion, count - done);
      if (pace) pace(now);
      file->write_at(written, buffer.data() + done, now);
      written += now;
    }
    const std::size_t rest = buffer.size() - count;
    std::memmove(buffer.data(), buffer.data() + count, rest);
    buffer.clear();
    buffer.extend(rest);
  }

  std::uint64_t finish() {
    end_chunk();
    const std::uint64_t count = chunks;
    begin_chunk(kEnd);
    buffer.append(&count, sizeof count);
    end_chunk();
    const std::uint64_t bytes = written + buffer.size();
    buffer.pad_to_page();
    write_blocks(buffer.size());
    file->truncate(bytes);
    file->sync_all();
    file.reset();
    put_in_place(partial, path);
    return bytes;
  }

  const std::filesystem::path path, partial;
  const Pace pace;
  std::unique_ptr<posix::File> file;  // none: finished or failed
  posix::AlignedBuffer buffer;        // what follows the first `written` bytes
  std::uint64_t written = 0;
  std::size_t chunk_at = 0;  // in the buffer
  bool chunk_open = false;
  ChunkHeader chunk{};
  std::uint32_t chunks = 0;
};

SectionWriter::SectionWriter(std::filesystem::path path, Pace pace)
    : impl_(std::make_unique<Impl>(std::move(path), std::move(pace))) {}

SectionWriter::~SectionWriter() {
  if (impl_->file) remove_quietly(impl_->partial);
}

void SectionWriter::write(const char (&section)[5], std::span<const std::byte> bytes) {
  impl_->require_open();
  const bool letters = std::all_of(
      section, section + 4, [](unsigned char letter) { return letter > 0x20 && letter < 0x7f; });
  if (!letters || section[4] != '\0' || std::strcmp(section, kEnd) == 0) {
    throw Error(ErrorKind::bad_input, "a section's name is 4 ASCII letters other than END!");
  }
  try {
    impl_->write(section, bytes);
  } catch (...) {
    impl_->file.reset();
    remove_quietly(impl_->partial);
    throw;
  }
}

std::uint64_t SectionWriter::finish() {
  impl_->require_open();
  try {
    return impl_->finish();
  } catch (...) {
    impl_->file.reset();
    remove_quietly(impl_->partial);
    throw;
  }
}

struct SectionReader::Impl {
  explicit Impl(const std::filesystem::path& given) : path(given), window(given, true) {
    const auto block = window.at(0, kPageBytes);
    FileHeader header{};
    if (block.size() < kPageBytes) refuse("the file ends in its header");
    std::memcpy(&header, block.data(), sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof header.magic) != 0) {
      refuse("not a checkpoint's file");
    }
    if (header.crc != header_crc(block.data())) refuse("the header is damaged");
    if (header.version > kFormatVersion) {
      throw Error(ErrorKind::environment,
                  path.string() + " has file format " + std::to_string(header.version) +
                      "; this program reads up to " + std::to_string(kFormatVersion));
    }
    offset = kPageBytes;
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::corrupt,
                path.string() + ", byte " + std::to_string(offset) + ": " + what);
  }

  bool next() {
    if (ended) return false;
    offset += chunk_bytes;
    chunk_bytes = 0;
    payload = {};
    const auto head = window.at(offset, sizeof chunk);
    if (head.size() < sizeof chunk) refuse("the file ends without its end mark");
    std::memcpy(&chunk, head.data(), sizeof chunk);
    if (chunk.bytes > kChunkBytes) refuse("a chunk's header is damaged");
    const auto whole = window.at(offset, sizeof chunk + chunk.bytes);
    if (whole.size() < sizeof chunk + chunk.bytes) refuse("the file ends in a chunk");
    if (chunk.crc != chunk_crc(chunk, whole.data() + sizeof chunk)) refuse("a chunk is damaged");
    if (chunk.sequence != chunks) {
      refuse("chunk " + std::to_string(chunk.sequence) + " where " + std::to_string(chunks) +
             " was to be");
    }
    ++chunks;
    payload = whole.subspan(sizeof chunk);
    chunk_bytes = whole.size();
    if (std::memcmp(chunk.section, kEnd, sizeof chunk.section) != 0) return true;

    std::uint64_t count = 0;
    if (payload.size() != sizeof count) refuse("the end mark is damaged");
    std::memcpy(&count, payload.data(), sizeof count);
    if (count != chunks - 1) refuse("the end mark counts " + std::to_string(count) + " chunks");
    offset += chunk_bytes;
    if (offset != window.size()) refuse("there are bytes behind the end mark");
    payload = {};
    ended = true;
    return false;
  }

  const std::filesystem::path path;
  posix::Window window;
  std::uint64_t offset = 0;     // of the current chunk
  std::size_t chunk_bytes = 0;  // with its header
  std::span<const std::byte> payload;
  ChunkHeader chunk{};
  std::uint32_t chunks = 0;  // read
  bool ended = false;
};

SectionReader::SectionReader(const std::filesystem::path& path)
    : impl_(std::make_unique<Impl>(path)) {}
SectionReader::~SectionReader() = default;

bool SectionReader::next() { return impl_->next(); }
std::string SectionReader::section() const { return {impl_->chunk.section, 4}; }
std::span<const std::byte> SectionReader::bytes() const { return impl_->payload; }

void write_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const auto beside = with_suffix(path, ".partial");
  try {
    posix::File file(beside, posix::Open::replace, false);
    file.write_at(0, bytes.data(), bytes.size());
    file.sync_all();
    put_in_place(beside, path);
  } catch (...) {
    remove_quietly(beside);
    throw;
  }
}

}  // namespace navis
