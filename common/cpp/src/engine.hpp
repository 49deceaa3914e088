// What the two backends have in common. An engine moves bytes and reports what the system said;
// what that means (short, ended, again) is decided once, in ring.cpp, so that results cannot
// differ.
#pragma once

#include "shorthaul/uring.hpp"

namespace shorthaul::uring::detail {

using Bytes = std::span<std::byte>;
enum class Operation : std::uint8_t { read, write, sync };

struct Transfer {
  Operation operation = Operation::read;
  int fd = -1;
  int file_index = -1;    // among the registered files; -1: not registered
  int buffer_index = -1;  // among the registered buffers
  std::byte* data = nullptr;
  std::size_t bytes = 0;  // at most kLongest
  std::uint64_t offset = 0;
  std::uint32_t slot = 0;
};

struct Outcome {
  std::uint32_t slot = 0;
  int result = 0;  // bytes, or -errno
};

// Linux moves no more in one call; a multiple of kAlignment.
inline constexpr std::size_t kLongest = 0x7ffff000;

class Engine {
 public:
  virtual ~Engine() = default;
  virtual void push(const Transfer& transfer) = 0;
  // Starts what was pushed, waits until `minimum` outcomes are there, appends all that are.
  virtual void exchange(std::size_t minimum, std::vector<Outcome>& out, Counters& counters) = 0;
  // False: the transfers do without.
  virtual bool register_files(std::span<const int> fds) = 0;
  virtual bool register_buffers(std::span<const Bytes> buffers) = 0;
};

struct Refusal {
  int code = 0;
  std::string reason;
};

std::unique_ptr<Engine> make_posix(unsigned depth, unsigned threads);
// Null with a refusal where the kernel grants no ring.
std::unique_ptr<Engine> make_uring(unsigned depth, Refusal& refusal);

}  // namespace shorthaul::uring::detail
