// A thread's way to the disk: one ring, its buffers, and several traversals in flight.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "traversal.hpp"

namespace navis {

class Lane {
 public:
  explicit Lane(Store& store);

  // Drives traversals, several at a time: `next` begins one (false: no more), `done` takes what it
  // found. Both run on the calling thread. Throws what a traversal or a read throws, after all
  // reads in flight have ended.
  void run(std::size_t in_flight, const std::function<bool(Traversal&)>& next,
           const std::function<void(Traversal&)>& done);

  // Does these reads now, e.g. one record; throws Error(io) naming the file.
  void read(const std::vector<ReadRequest>& requests);
  // Writes, merged by the caller, within the writers' budget; throws Error(io | no_space) naming
  // the file.
  struct WriteRequest {
    const shorthaul::uring::File* file;
    std::uint64_t offset;
    std::span<const std::byte> bytes;
  };
  void write(const std::vector<WriteRequest>& requests);

  shorthaul::uring::Ring& ring() { return ring_; }
  std::size_t memory_bytes() const { return units_.memory_bytes() + vectors_.memory_bytes(); }

 private:
  void drain();

  Store& store_;
  shorthaul::uring::Ring ring_;
  BufferPool units_, vectors_;
  std::vector<std::unique_ptr<Traversal>> traversals_;
  std::vector<shorthaul::uring::Completion> completions_;
};

}  // namespace navis
