// One tile's update in memory: gradient decoded, parameters and moments stepped, parameters handed
// out. Pure computation over buffers; storage is the engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "hyper.hpp"
#include "kernels.hpp"
#include "state_file.hpp"
#include "topk.hpp"
#include "types.hpp"

namespace smart_infinity {

// Elements [begin, end) of a tile are those of a parameter from `element` on.
struct Segment {
  std::uint32_t begin = 0, end = 0;
  std::uint32_t parameter = 0;
  kernels::Recipe recipe = kernels::Recipe::whole;
  std::uint64_t element = 0;
};

// Segments of several tiles as columns, tile by tile.
struct SegmentColumns {
  std::vector<std::uint32_t> tile, begin, end, parameter;
  std::vector<bool> rest;
  std::vector<std::uint64_t> element;
};
// Of each tile of the shape its segments. Error(bad_input) unless they are ascending, apart and
// within it.
std::vector<std::vector<Segment>> segments_of(const Shape& shape, const SegmentColumns& columns);

enum class Encoding : std::uint8_t { dense, topk };

struct Gradient {
  std::span<const std::byte> bytes;
  Encoding encoding = Encoding::dense;
  Dtype type = Dtype::float32;  // of the values
};

inline constexpr std::uint16_t kSkip = 0xFFFF;

// What a step does to each parameter: hypers[hyper_of[parameter]], or nothing where that is kSkip.
struct StepPlan {
  std::uint64_t step = 0;
  std::vector<Hyper> hypers;
  std::vector<std::uint16_t> hyper_of;
};

// Of one tile's record in memory, its arrays one after the other at these places.
struct Record {
  std::byte* arrays[3] = {};
  std::size_t n = 0;  // elements
};

// What steps tiles, with the same bits whatever it runs on. One thread at a time.
class TileUpdate {
 public:
  TileUpdate() = default;
  TileUpdate(const TileUpdate&) = delete;
  TileUpdate& operator=(const TileUpdate&) = delete;
  virtual ~TileUpdate() = default;

  // `out` takes n parameters as `out_type`, or is null. Gives whether all of the gradient that was
  // used is finite. A gradient that cannot be decoded is Error(bad_input), and nothing has changed.
  virtual bool run(const Shape& shape, std::span<const Segment> segments, const StepPlan& plan,
                   const Gradient& gradient, const Record& record, std::byte* out,
                   Dtype out_type) = 0;
};

// On the processor, by kernels.hpp; or on an OpenCL device, see opencl_update.hpp.
enum class Updater : std::uint8_t { cpu, opencl };

// For tiles of this shape. Errors are the updater's, before anything is stepped.
std::unique_ptr<TileUpdate> tile_update(Updater updater, const Shape& shape);

// Error(bad_input) unless a dense gradient has the bytes of n elements.
void check_dense(const Gradient& gradient, std::size_t n);

// n numbers of array `array` (0: parameters), whatever they are stored as.
void decode_array(const Shape& shape, std::size_t array, const std::byte* stored, std::size_t n,
                  float* out);
// The same backwards, for moments that come from outside: `segments` place the dice.
void encode_array(const Shape& shape, std::size_t array, std::span<const Segment> segments,
                  std::uint64_t step, const float* values, std::size_t n, std::byte* stored);

}  // namespace smart_infinity
