// The rows that an index is built from, in memory or in a file.
#pragma once

#include <vector>

#include "index.hpp"

namespace navis {

class BuildRows {
 public:
  BuildRows(const BuildData& data, std::size_t raw_bytes) : data_(data), raw_bytes_(raw_bytes) {
    if (data.file.empty()) return;
    file_ = shorthaul::uring::File::open(data.file, shorthaul::uring::File::Mode::read, false);
    buffer_.resize(raw_bytes);
  }
  // The pointer is good until the next call.
  const std::byte* row(std::size_t i) {
    if (!file_) return data_.raw + i * raw_bytes_;
    file_.read_at(data_.offset + i * raw_bytes_, buffer_);
    return buffer_.data();
  }

 private:
  const BuildData& data_;
  std::size_t raw_bytes_;
  shorthaul::uring::File file_;
  std::vector<std::byte> buffer_;
};

}  // namespace navis
