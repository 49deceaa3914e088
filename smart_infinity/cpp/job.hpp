// What an engine is told to do with a tile, and what it tells of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "tile.hpp"
#include "types.hpp"

namespace smart_infinity {

// What to do with a tile. Memory that a job names must stay until its event.
struct Job {
  enum class Type : std::uint8_t {
    update,  // with `gradient`; `out` takes the parameters
    land,    // keeps `gradient` until update_landed, added to what is there if `add`
    update_landed,
    read,   // arrays in `mask` to `out`, as floats where `decoded`, else as stored;
            // bit 3: the landed gradient too
    write,  // arrays in `mask` from `gradient.bytes`, as floats where `decoded`; others stay
  };
  Type type = Type::update;
  std::uint32_t tile = 0;
  std::uint64_t tag = 0;
  Gradient gradient;
  bool add = false;
  std::span<std::byte> out;
  Dtype out_type = Dtype::float32;
  std::uint32_t mask = 0;
  bool decoded = false;

  static Job update(std::uint32_t tile, std::uint64_t tag, const Gradient& gradient,
                    std::span<std::byte> out, Dtype out_type);
  static Job land(std::uint32_t tile, std::uint64_t tag, const Gradient& gradient, bool add);
  static Job update_landed(std::uint32_t tile, std::uint64_t tag, std::span<std::byte> out,
                           Dtype out_type);
  static Job read(std::uint32_t tile, std::uint64_t tag, std::span<std::byte> out,
                  std::uint32_t mask, bool decoded);
  static Job write(std::uint32_t tile, std::uint64_t tag, std::span<const std::byte> values,
                   std::uint32_t mask, bool decoded);
};

struct Event {
  // done: `out` is written and `gradient` is free. settled: the tile is on disk as well (not yet
  // synced). A job of which nothing is left to write gives done alone.
  enum class Type : std::uint8_t { done, settled, failed };
  Type type = Type::done;
  Job::Type job = Job::Type::update;
  std::uint32_t tile = 0;
  std::uint64_t tag = 0;
  std::size_t bytes = 0;  // in `out`
  bool finite = true;     // update: whether the gradient was
  ErrorKind error = ErrorKind::io;
  std::string message;
};

}  // namespace smart_infinity
