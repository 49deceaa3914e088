// Measured cost of every block at every group size: the only input of planner and simulator.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace pipe_bd {

// Marks a (block, group size) pair that was not measured or is not allowed.
inline constexpr double kUnavailable = std::numeric_limits<double>::quiet_NaN();

// Raw measurements behind a table of times. Rows are stored one after another;
// row r is values[offsets[r] .. offsets[r + 1]). An empty row means "use the table's number".
struct Samples {
  std::vector<std::size_t> offsets;
  std::vector<double> values;
};

// Tables are row-major [block][size], `size` being an index into `groups`.
struct Profile {
  std::size_t blocks = 0;
  std::vector<int> groups;  // measured group sizes, ascending, none above the batch
  std::vector<double> teacher_s;
  std::vector<double> student_s;
  std::vector<double> allreduce_s;
  std::vector<double> memory_bytes;      // kUnavailable where memory was not measured
  std::vector<double> update_s;          // [block]
  std::vector<double> activation_bytes;  // [block]: the block's output, for the full batch
  double latency_s = 0.0;
  double bytes_per_s = std::numeric_limits<double>::infinity();
  double loader_s = 0.0;
  Samples teacher_samples;  // rows as in the tables
  Samples student_samples;
  Samples update_samples;  // rows are blocks

  std::size_t at(std::size_t block, std::size_t size) const { return block * groups.size() + size; }

  bool available(std::size_t block, std::size_t size) const {
    return !std::isnan(teacher_s[at(block, size)]);
  }

  // Alpha-beta cost of moving the output of `block` to the next stage.
  double link_seconds(std::size_t block) const {
    return latency_s + activation_bytes[block] / bytes_per_s;
  }
};

// Blocks first..last (both inclusive) on `devices` consecutive devices.
struct Stage {
  int first = 0;
  int last = 0;
  int devices = 1;
  friend bool operator==(const Stage&, const Stage&) = default;
};

}  // namespace pipe_bd
