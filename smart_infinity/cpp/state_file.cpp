#include "state_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <type_traits>

#include "crc32c.hpp"

namespace smart_infinity {

using shorthaul::uring::Buffer;
using shorthaul::uring::File;
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kMagic = 0x464E495452414D53ULL;  // "SMARTINF", read as a number
constexpr std::uint32_t kVersion = 1;
// 8-bit moments: blocks of numbers share a scale, see codec.hpp.
constexpr std::size_t kBlock = 256, kScaleBytes = 4;
constexpr std::size_t kSlotPage[2] = {kPage, 2 * kPage};

std::uint64_t up(std::uint64_t n, std::uint64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Both are pages of the file; all numbers are little-endian.
struct Header {
  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t sum = 0;  // of the page, this field zero
  std::uint32_t kind = 0, momentum = 0, moments = 0, tile = 0;
  std::uint64_t tiles = 0, description_bytes = 0, note_bytes = 0;
  std::uint32_t body_sum = 0, reserved = 0;  // of elements and description
};
struct SlotPage {
  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t sum = 0;
  std::uint64_t sequence = 0, step = 0;
  std::uint32_t table_sum = 0, note_bytes = 0, note_sum = 0, header_sum = 0;
};
static_assert(std::is_trivially_copyable_v<Header> && std::is_trivially_copyable_v<SlotPage>);
static_assert(sizeof(Header) == 64 && sizeof(SlotPage) == 48 && sizeof(Entry) == 16);

template <class Page>
Buffer sealed(Page page) {
  Buffer buffer(kPage);
  page.sum = 0;
  std::memcpy(buffer.data(), &page, sizeof page);
  page.sum = crc32c(0, buffer.data(), kPage);
  std::memcpy(buffer.data(), &page, sizeof page);
  return buffer;
}

// The page, or nothing when its sum is not what it says.
template <class Page>
std::optional<Page> unsealed(const Buffer& buffer) {
  Buffer copy(kPage);
  std::memcpy(copy.data(), buffer.data(), kPage);
  Page page;
  std::memcpy(&page, copy.data(), sizeof page);
  const std::uint32_t sum = page.sum;
  page.sum = 0;
  std::memcpy(copy.data(), &page, sizeof page);
  if (crc32c(0, copy.data(), kPage) != sum) return std::nullopt;
  page.sum = sum;
  return page;
}

[[noreturn]] void refuse(const fs::path& path, const std::string& why) {
  throw Error(ErrorKind::bad_input, path.string() + ": " + why);
}

[[noreturn]] void damaged(const fs::path& path, const std::string& what) {
  throw Error(ErrorKind::corrupt, path.string() + ": " + what + " is damaged");
}

std::string gib(std::uint64_t bytes) {
  return std::to_string(bytes) + " bytes (" +
         std::to_string((bytes + (std::uint64_t{1} << 20U) - 1) >> 20U) + " MiB)";
}

struct Places {
  std::uint64_t body, tables[2], table_bytes, note_bytes, extents, extent_bytes, end;
};

Places places_of(const Shape& shape, std::size_t description_bytes, std::size_t note_bytes) {
  Places p{};
  const std::uint64_t tiles = shape.elements.size();
  p.body = 3 * kPage;
  p.note_bytes = up(note_bytes, kPage);
  p.table_bytes = up(tiles * sizeof(Entry), kPage);
  p.tables[0] = up(p.body + tiles * sizeof(std::uint32_t) + description_bytes, kPage);
  p.tables[1] = p.tables[0] + p.table_bytes + p.note_bytes;
  p.extents = p.tables[1] + p.table_bytes + p.note_bytes;
  p.extent_bytes = tiles * shape.record_bytes();
  p.end = p.extents + 2 * p.extent_bytes;
  return p;
}

void check(const Shape& shape) {
  if (shape.tile == 0 || shape.tile % 1024 != 0 || shape.tile > (1U << 26U)) {
    throw Error(ErrorKind::bad_input, "tile=" + std::to_string(shape.tile) +
                                          ": use a multiple of 1024 up to " +
                                          std::to_string(1U << 26U));
  }
  for (const std::uint32_t n : shape.elements) {
    if (n == 0 || n > shape.tile) {
      throw Error(ErrorKind::bad_input, "a tile of " + std::to_string(n) + " elements: use 1 to " +
                                            std::to_string(shape.tile));
    }
  }
}

}  // namespace

std::size_t Shape::bytes(std::size_t array, std::size_t n) const {
  if (array == 0 || moments == Moments::float32) return n * sizeof(float);
  if (moments == Moments::bfloat16) return n * 2;
  return up(n, kBlock) + up(n, kBlock) / kBlock * kScaleBytes;
}

std::size_t Shape::stored_bytes(std::size_t array, std::size_t n) const {
  return up(bytes(array, n), kPage);
}

std::size_t Shape::record_bytes() const {
  std::size_t sum = 0;
  for (std::size_t array = 0; array < arrays(); ++array) sum += stored_bytes(array, tile);
  return sum;
}

struct StateFile::Impl {
  fs::path folder;
  File file;
  int lock = -1;
  Shape shape;
  std::string description;
  Places places{};
  std::size_t note_limit = 0;
  std::uint32_t header_sum = 0;
  Slot committed;
  std::optional<Slot> previous;
  std::optional<Slot> prepared;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (lock >= 0) ::close(lock);
  }

  fs::path path() const { return folder / kName; }

  // One process has it; the kernel lets go when that ends, however it ends.
  void take_lock() {
    const fs::path name = folder / "LOCK";
    lock = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock < 0) throw std::system_error(errno, std::generic_category(), "open " + name.string());
    if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
      refuse(folder, "in use by another process; end that first");
    }
  }

  Buffer read_page(std::uint64_t offset) const {
    Buffer page(kPage);
    file.read_at(offset, page.span(0, kPage));
    return page;
  }

  std::optional<Slot> read_slot(std::size_t which) const {
    const auto page = unsealed<SlotPage>(read_page(kSlotPage[which]));
    if (!page || page->magic != kMagic || page->header_sum != header_sum) return std::nullopt;
    if (page->note_bytes > note_limit || page->sequence % 2 != which) return std::nullopt;
    Slot slot{page->sequence, page->step, std::vector<Entry>(shape.elements.size()), {}};
    file.read_at(places.tables[which], std::as_writable_bytes(std::span(slot.table)));
    slot.note.resize(page->note_bytes);
    file.read_at(places.tables[which] + places.table_bytes,
                 std::as_writable_bytes(std::span(slot.note.data(), slot.note.size())));
    const bool whole =
        crc32c(0, slot.table.data(), slot.table.size() * sizeof(Entry)) == page->table_sum &&
        crc32c(0, slot.note.data(), slot.note.size()) == page->note_sum &&
        std::all_of(slot.table.begin(), slot.table.end(),
                    [](const Entry& entry) { return entry.extent <= 1; });
    if (!whole) return std::nullopt;
    return slot;
  }

  void write_body(const Slot& slot) {
    const std::size_t which = slot.sequence % 2;
    Buffer table(std::max<std::uint64_t>(places.table_bytes, kPage));
    std::memcpy(table.data(), slot.table.data(), slot.table.size() * sizeof(Entry));
    file.write_at(places.tables[which], table.span(0, places.table_bytes));
    if (!slot.note.empty()) {
      file.write_at(places.tables[which] + places.table_bytes,
                    std::as_bytes(std::span(slot.note.data(), slot.note.size())));
    }
    file.sync();
  }

  void write_head(const Slot& slot) {
    SlotPage page;
    page.sequence = slot.sequence;
    page.step = slot.step;
    page.table_sum = crc32c(0, slot.table.data(), slot.table.size() * sizeof(Entry));
    page.note_bytes = static_cast<std::uint32_t>(slot.note.size());
    page.note_sum = crc32c(0, slot.note.data(), slot.note.size());
    page.header_sum = header_sum;
    file.write_at(kSlotPage[slot.sequence % 2], sealed(page).span(0, kPage));
    file.sync();
  }
};

StateFile::StateFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StateFile::StateFile(StateFile&&) noexcept = default;
StateFile& StateFile::operator=(StateFile&&) noexcept = default;
StateFile::~StateFile() = default;

std::uint64_t StateFile::needed_bytes(const Shape& shape, std::string_view description,
                                      std::size_t note_bytes) {
  return places_of(shape, description.size(), note_bytes).end;
}

StateFile StateFile::create(const fs::path& folder, const Shape& shape,
                            std::string_view description, std::size_t note_bytes) {
  check(shape);
  auto impl = std::make_unique<Impl>();
  impl->folder = folder;
  std::error_code failed;
  fs::create_directories(folder, failed);
  if (failed) refuse(folder, "cannot be made (" + failed.message() + ")");
  if (fs::exists(impl->path())) refuse(folder, "holds a state already; open it, or remove it");
  impl->take_lock();
  impl->shape = shape;
  impl->description = description;
  impl->places = places_of(shape, description.size(), note_bytes);
  impl->note_limit = impl->places.note_bytes;
  const Places& places = impl->places;

  struct statvfs space{};
  if (::statvfs(folder.c_str(), &space) == 0) {
    const std::uint64_t free = std::uint64_t{space.f_bavail} * space.f_frsize;
    if (free < places.end) {
      refuse(folder, "needs " + gib(places.end) + ", there are " + gib(free) +
                         " free; give another directory, or more of them");
    }
  }
  // Under another name until it is whole: what is there is a state.
  const fs::path fresh = folder / (std::string(kName) + ".new");
  try {
    impl->file = File::open(fresh, File::Mode::create);
    impl->file.allocate(places.end);
    Header header;
    header.kind = static_cast<std::uint32_t>(shape.kind);
    header.momentum = shape.momentum ? 1 : 0;
    header.moments = static_cast<std::uint32_t>(shape.moments);
    header.tile = shape.tile;
    header.tiles = shape.elements.size();
    header.description_bytes = description.size();
    header.note_bytes = note_bytes;
    std::vector<std::byte> body(shape.elements.size() * sizeof(std::uint32_t) + description.size());
    std::memcpy(body.data(), shape.elements.data(), shape.elements.size() * sizeof(std::uint32_t));
    if (!description.empty()) {
      std::memcpy(body.data() + shape.elements.size() * sizeof(std::uint32_t), description.data(),
                  description.size());
    }
    header.body_sum = crc32c(0, body.data(), body.size());
    const Buffer page = sealed(header);
    impl->header_sum = unsealed<Header>(page)->sum;
    impl->file.write_at(0, page.span(0, kPage));
    impl->file.write_at(places.body, body);
    // Zeros have a sum too: a state that was never loaded is whole.
    impl->committed = {1, 0, std::vector<Entry>(shape.elements.size()), {}};
    std::array<std::uint32_t, 3> zeros{};
    std::size_t n = 0;
    for (std::size_t tile = 0; tile < shape.elements.size(); ++tile) {
      if (shape.elements[tile] != n) {
        n = shape.elements[tile];
        for (std::size_t array = 0; array < shape.arrays(); ++array) {
          const std::vector<std::byte> nothing(shape.stored_bytes(array, n));
          zeros[array] = page_sum(nothing.data(), nothing.size());
        }
      }
      impl->committed.table[tile].sums = zeros;
    }
    impl->write_body(impl->committed);
    impl->write_head(impl->committed);
    fs::rename(fresh, impl->path());
    impl->file = File::open(impl->path(), File::Mode::write);
    const int at = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at >= 0) {
      ::fsync(at);
      ::close(at);
    }
  } catch (const std::system_error& error) {
    std::error_code ignored;
    fs::remove(fresh, ignored);
    if (error.code().value() == ENOSPC) refuse(folder, "needs " + gib(places.end) + " of space");
    throw;
  }
  return StateFile(std::move(impl));
}

StateFile StateFile::open(const fs::path& folder, bool readonly) {
  auto impl = std::make_unique<Impl>();
  impl->folder = folder;
  const fs::path path = impl->path();
  if (!fs::exists(path)) refuse(folder, "holds no state (no " + std::string(kName) + ")");
  if (!readonly) impl->take_lock();
  impl->file = File::open(path, readonly ? File::Mode::read : File::Mode::write);
  if (impl->file.size() < 3 * kPage) refuse(path, "is cut off in its header");
  const Buffer first = impl->read_page(0);
  std::uint64_t magic = 0;
  std::uint32_t version = 0;
  std::memcpy(&magic, first.data(), sizeof magic);
  std::memcpy(&version, first.data() + sizeof magic, sizeof version);
  if (magic != kMagic) refuse(path, "is not a state of smart_infinity");
  if (version != kVersion) {
    refuse(path, "has format version " + std::to_string(version) + ", this program reads " +
                     std::to_string(kVersion) + "; use the program that wrote it");
  }
  const auto header = unsealed<Header>(first);
  if (!header) damaged(path, "the header");
  if (header->kind > 3 || header->moments > 2) refuse(path, "names an unknown optimizer");
  impl->header_sum = header->sum;
  impl->shape.kind = static_cast<Kind>(header->kind);
  impl->shape.momentum = header->momentum != 0;
  impl->shape.moments = static_cast<Moments>(header->moments);
  impl->shape.tile = header->tile;
  const std::uint64_t body_bytes =
      header->tiles * sizeof(std::uint32_t) + header->description_bytes;
  if (3 * kPage + body_bytes > impl->file.size()) damaged(path, "the length");
  std::vector<std::byte> body(body_bytes);
  impl->file.read_at(3 * kPage, body);
  if (crc32c(0, body.data(), body.size()) != header->body_sum) damaged(path, "the description");
  impl->shape.elements.resize(header->tiles);
  std::memcpy(impl->shape.elements.data(), body.data(), header->tiles * sizeof(std::uint32_t));
  impl->description.assign(
      reinterpret_cast<const char*>(body.data()) + header->tiles * sizeof(std::uint32_t),
      header->description_bytes);
  check(impl->shape);
  impl->places = places_of(impl->shape, impl->description.size(), header->note_bytes);
  impl->note_limit = impl->places.note_bytes;
  if (impl->file.size() < impl->places.end) damaged(path, "the length");

  std::optional<Slot> slots[2] = {impl->read_slot(0), impl->read_slot(1)};
  if (!slots[0] && !slots[1]) damaged(path, "the table in both slots");
  const bool second = slots[1] && (!slots[0] || slots[1]->sequence > slots[0]->sequence);
  impl->committed = *slots[second ? 1 : 0];
  impl->previous = slots[second ? 0 : 1];
  // After a roll-back the other slot is ahead, and not to come back.
  if (impl->previous && impl->previous->step >= impl->committed.step) impl->previous.reset();
  return StateFile(std::move(impl));
}

const Shape& StateFile::shape() const { return impl_->shape; }
const std::string& StateFile::description() const { return impl_->description; }
const fs::path& StateFile::folder() const { return impl_->folder; }
const File& StateFile::file() const { return impl_->file; }
const Slot& StateFile::committed() const { return impl_->committed; }
const std::optional<Slot>& StateFile::previous() const { return impl_->previous; }

std::uint64_t StateFile::offset(std::size_t tile, std::uint32_t extent, std::size_t array) const {
  std::uint64_t at = impl_->places.extents + extent * impl_->places.extent_bytes +
                     tile * std::uint64_t{impl_->shape.record_bytes()};
  for (std::size_t before = 0; before < array; ++before) {
    at += impl_->shape.stored_bytes(before, impl_->shape.tile);
  }
  return at;
}

void StateFile::prepare(std::uint64_t step, std::vector<Entry> table, std::string_view note) {
  if (note.size() > impl_->note_limit) {
    throw Error(ErrorKind::bad_input, "a note of " + std::to_string(note.size()) +
                                          " bytes: this state has room for " +
                                          std::to_string(impl_->note_limit));
  }
  impl_->prepared = {impl_->committed.sequence + 1, step, std::move(table), std::string(note)};
  impl_->previous.reset();  // its place is taken
  impl_->write_body(*impl_->prepared);
}

void StateFile::commit() {
  if (!impl_->prepared) throw Error(ErrorKind::protocol, "commit without prepare");
  impl_->write_head(*impl_->prepared);
  impl_->previous = std::move(impl_->committed);
  impl_->committed = std::move(*impl_->prepared);
  impl_->prepared.reset();
}

void StateFile::rollback() {
  if (!impl_->previous) {
    throw Error(ErrorKind::protocol, impl_->folder.string() + ": there is no step before " +
                                         std::to_string(impl_->committed.step) + " to go back to");
  }
  Slot back = *impl_->previous;
  back.sequence = impl_->committed.sequence + 1;
  impl_->write_body(back);
  impl_->write_head(back);
  impl_->previous.reset();  // what was ahead is not to come back
  impl_->committed = std::move(back);
}

std::vector<StateFile::Fault> StateFile::verify(const Slot& slot) const {
  std::vector<Fault> faults;
  Buffer buffer(impl_->shape.record_bytes());
  for (std::size_t tile = 0; tile < slot.table.size(); ++tile) {
    const Entry& entry = slot.table[tile];
    for (std::size_t array = 0; array < impl_->shape.arrays(); ++array) {
      const std::size_t bytes = impl_->shape.stored_bytes(array, impl_->shape.elements[tile]);
      bool read = true;
      try {
        impl_->file.read_at(offset(tile, entry.extent, array), buffer.span(0, bytes));
      } catch (const std::system_error&) {
        read = false;
      }
      if (!read || page_sum(buffer.data(), bytes) != entry.sums[array])
        faults.push_back({tile, array});
    }
  }
  return faults;
}

}  // namespace smart_infinity
