// One device's optimizer state on disk: tiles of parameters and moments in two extents, and two
// slots that say, in turn, which extent holds each tile. A step writes beside what it reads, so
// that until its slot is committed nothing of the step before is lost. docs/format.md has the
// format.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <shorthaul/uring.hpp>
#include <span>
#include <string>
#include <vector>

#include "types.hpp"

namespace smart_infinity {

// What is stored, fixed when the file is made.
struct Shape {
  Kind kind = Kind::adamw;
  bool momentum = false;  // sgd: whether it has one
  Moments moments = Moments::float32;
  std::uint32_t tile = 1U << 18U;       // elements of a whole tile, a multiple of 1,024
  std::vector<std::uint32_t> elements;  // of each tile of this device, at most `tile`

  std::size_t arrays() const { return 1 + moments_of(kind, momentum); }  // parameters, moments
  // Bytes of array `array` of n elements; 0 is the parameters, always float32.
  std::size_t bytes(std::size_t array, std::size_t n) const;
  // The same in whole pages, as it lies on disk.
  std::size_t stored_bytes(std::size_t array, std::size_t n) const;
  std::size_t record_bytes() const;  // of a whole tile's arrays, one after the other
};

// Where a tile is, and the sums of its arrays (page_sum over the stored bytes).
struct Entry {
  std::uint32_t extent = 0;
  std::array<std::uint32_t, 3> sums{};
  bool operator==(const Entry&) const = default;
};

struct Slot {
  std::uint64_t sequence = 0;  // of commits and roll-backs, from 1
  std::uint64_t step = 0;      // optimizer steps behind this state
  std::vector<Entry> table;
  std::string note;  // the host's, opaque here
};

class StateFile {
 public:
  static constexpr const char* kName = "state.smart";

  // Makes `folder` and its file, whole, so that it cannot run out of space later; at most
  // `note_bytes` of notes. What it needs and cannot have is Error(bad_input) with the figure.
  static StateFile create(const std::filesystem::path& folder, const Shape& shape,
                          std::string_view description, std::size_t note_bytes);
  // Error(bad_input): not a state, of another version, in use. Error(corrupt): header or both slots
  // are damaged.
  static StateFile open(const std::filesystem::path& folder, bool readonly = false);
  // Bytes on disk that create() would take.
  static std::uint64_t needed_bytes(const Shape& shape, std::string_view description,
                                    std::size_t note_bytes);

  StateFile(StateFile&&) noexcept;
  StateFile& operator=(StateFile&&) noexcept;
  ~StateFile();

  const Shape& shape() const;
  const std::string& description() const;
  const std::filesystem::path& folder() const;
  const shorthaul::uring::File& file() const;
  std::uint64_t offset(std::size_t tile, std::uint32_t extent, std::size_t array) const;

  const Slot& committed() const;
  // What rollback() would bring back: the slot before, when it is whole.
  const std::optional<Slot>& previous() const;

  // Makes table and note of the next slot durable, with all data written before. Then commit()
  // makes the slot the current one, durably.
  void prepare(std::uint64_t step, std::vector<Entry> table, std::string_view note);
  void commit();
  void rollback();  // Error(protocol) when there is no previous slot

  struct Fault {
    std::size_t tile, array;
  };
  // Reads every array of a slot and compares its sum.
  std::vector<Fault> verify(const Slot& slot) const;

 private:
  struct Impl;
  explicit StateFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace smart_infinity
