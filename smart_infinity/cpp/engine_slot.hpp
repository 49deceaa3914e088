// What engine.cpp (the thread and its transfers) and engine_tiles.cpp (what is done to a tile)
// share.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <shorthaul/uring.hpp>

#include "engine.hpp"

namespace smart_infinity {

inline constexpr unsigned kLanded = 3;  // what a transfer is of: array 0 to 2, or a landed gradient
inline constexpr unsigned kWrites = 4;  // added where it is a write
inline constexpr std::uint32_t kLandedBit = 1U << kLanded;

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline const char* array_name(unsigned what) {
  constexpr const char* kNames[] = {"parameters", "first moments", "second moments", "gradients"};
  return kNames[what];
}

struct Engine::Slot {
  std::size_t index = 0;
  Job job;
  std::span<std::byte> gradient;  // landed, when one is on disk
  Record in_memory;
  std::uint32_t read_mask = 0;
  unsigned awaiting = 0;                            // transfers
  std::array<Pacer::Clock::time_point, 8> until{};  // when each may be done, by its tag
  bool writing = false;
  Entry entry;  // of what is being written
  double read_begin = 0, parameters_begin = 0, moments_begin = 0;
  int error = 0;
  unsigned error_what = 0;
};

}  // namespace smart_infinity
