#include "stepper.hpp"

#include <utility>

namespace smart_infinity {

Stepper::Stepper(Shape shape, const SegmentColumns& columns, Updater updater)
    : shape_(std::move(shape)),
      segments_(segments_of(shape_, columns)),
      update_(tile_update(updater, shape_)) {}

bool Stepper::run(std::size_t tile, const StepPlan& plan, const Gradient& gradient,
                  std::span<std::byte> record, std::span<std::byte> out, Dtype out_type) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw Error(ErrorKind::bad_input, what);
  };
  require(tile < segments_.size(), "a tile that is not there");
  Record arrays{{}, shape_.elements[tile]};
  std::size_t at = 0;
  for (std::size_t array = 0; array < shape_.arrays(); ++array) {
    arrays.arrays[array] = record.data() + at;
    at += shape_.bytes(array, arrays.n);
  }
  require(record.size() >= at, "a record too short for its arrays");
  require(out.size() >= arrays.n * bytes_of(out_type), "no room for the parameters");
  const std::lock_guard lock(mutex_);
  return update_->run(shape_, segments_[tile], plan, gradient, arrays, out.data(), out_type);
}

}  // namespace smart_infinity
