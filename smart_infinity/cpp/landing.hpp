// Gradients that wait for their step: in memory up to a budget, the rest in a file of the device.
// They are never needed after a crash, so that the file has no name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <shorthaul/uring.hpp>
#include <span>
#include <vector>

#include "types.hpp"

namespace smart_infinity {

class Landing {
 public:
  enum class Where : std::uint8_t { nowhere, memory, disk };
  struct Landed {
    Where where = Where::nowhere;
    Dtype type = Dtype::float32;
    std::unique_ptr<std::byte[]> bytes;
  };

  // `elements` of each tile; a tile of float32 takes at most `tile_bytes` on disk.
  Landing(std::filesystem::path folder, std::vector<std::uint32_t> elements, std::size_t tile_bytes,
          std::uint64_t budget)
      : folder_(std::move(folder)),
        elements_(std::move(elements)),
        tile_bytes_(tile_bytes),
        budget_(budget),
        landed_(elements_.size()) {}

  Landed& at(std::size_t tile) { return landed_[tile]; }
  std::size_t elements(std::size_t tile) const { return elements_[tile]; }

  // Memory for the tile if the budget has it; floats, so that there is room to add in.
  bool take_memory(std::size_t tile);
  void drop(std::size_t tile);
  void clear();
  std::uint64_t offset(std::size_t tile) const { return tile * tile_bytes_; }
  const shorthaul::uring::File& file();  // made at the first call

 private:
  std::filesystem::path folder_;
  std::vector<std::uint32_t> elements_;
  std::size_t tile_bytes_;
  std::uint64_t budget_, used_ = 0;
  std::vector<Landed> landed_;
  shorthaul::uring::File file_;
};

}  // namespace smart_infinity
