// What a device does to a tile, for hosts that update by themselves: on arrays that lie one after
// the other in memory, as READ gives them.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "tile.hpp"

namespace smart_infinity {

class Stepper {
 public:
  Stepper(Shape shape, const SegmentColumns& columns, Updater updater);

  // As TileUpdate::run; `record` has the tile's arrays, `out` room for its parameters. Several
  // threads may call; they go one after the other. Error(bad_input) where something is too short.
  bool run(std::size_t tile, const StepPlan& plan, const Gradient& gradient,
           std::span<std::byte> record, std::span<std::byte> out, Dtype out_type);

 private:
  const Shape shape_;
  const std::vector<std::vector<Segment>> segments_;
  const std::unique_ptr<TileUpdate> update_;
  std::mutex mutex_;
};

}  // namespace smart_infinity
