#include "landing.hpp"

namespace smart_infinity {

bool Landing::take_memory(std::size_t tile) {
  const std::size_t bytes = elements_[tile] * sizeof(float);
  if (used_ + bytes > budget_) return false;
  used_ += bytes;
  landed_[tile].bytes = std::make_unique_for_overwrite<std::byte[]>(bytes);
  landed_[tile].where = Where::memory;
  return true;
}

void Landing::drop(std::size_t tile) {
  Landed& landed = landed_[tile];
  if (landed.where == Where::memory) used_ -= elements_[tile] * sizeof(float);
  landed = Landed{};
}

void Landing::clear() {
  for (std::size_t tile = 0; tile < landed_.size(); ++tile) drop(tile);
}

const shorthaul::uring::File& Landing::file() {
  if (!file_) {
    const std::filesystem::path path = folder_ / "landing.smart";
    file_ = shorthaul::uring::File::open(path, shorthaul::uring::File::Mode::create);
    std::filesystem::remove(path);  // it goes with the process
    file_.allocate(elements_.size() * std::uint64_t{tile_bytes_});
  }
  return file_;
}

}  // namespace smart_infinity
