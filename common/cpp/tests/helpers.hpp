#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "shorthaul/uring.hpp"

namespace shorthaul::uring::testing {

// Below the working folder, which ctest puts on a disk; /tmp may be memory.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::current_path() / "uring-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
    path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::filesystem::path operator/(const char* name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// Those that this machine has.
inline std::vector<Backend> backends() {
  return is_available() ? std::vector{Backend::uring, Backend::posix} : std::vector{Backend::posix};
}

inline void fill(std::span<std::byte> bytes, std::uint64_t seed) {
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    bytes[at] = static_cast<std::byte>((seed * 0x9e3779b97f4a7c15U + at * 0x2545f491U) >> 13U);
  }
}

// Waits for everything, in the order of the tags.
inline std::vector<Completion> finish(Ring& ring) {
  std::vector<Completion> done;
  ring.submit_and_wait(ring.in_flight(), done);
  std::ranges::sort(done, {}, &Completion::tag);
  return done;
}

template <typename Call>
int code_of(const Call& call) {
  try {
    call();
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

}  // namespace shorthaul::uring::testing
