// What the tests share.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "../kernels.hpp"

namespace smart_infinity {

// A folder of its own, removed at the end. Not below /tmp where that is memory: O_DIRECT.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::current_path() / "test-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::filesystem::path path;
};

inline std::vector<float> normals(std::size_t n, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = scale * normal(random);
  return values;
}

template <class Check>
void at_every_level(Check&& check) {
  const kernels::Level before = kernels::active();
  for (const kernels::Level level : kernels::kLevels) {
    if (!kernels::supported(level)) continue;
    kernels::use(level);
    check();
  }
  kernels::use(before);
}

}  // namespace smart_infinity
