// The words every file of the engine shares.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

namespace navis {

// A vector's place in the index: dense, chosen by us. People's own ids are 64 bits, see node_table.
using NodeId = std::uint32_t;
inline constexpr NodeId kNoNode = std::numeric_limits<NodeId>::max();

// Unit of I/O and of the page formats, in bytes.
inline constexpr std::size_t kPageBytes = 4096;

enum class DataType : std::uint8_t { float32, float16, uint8, int8 };
enum class Metric : std::uint8_t { l2, inner_product, cosine };

inline constexpr std::size_t bytes_of(DataType type) {
  return type == DataType::float32 ? 4 : type == DataType::float16 ? 2 : 1;
}

// What went wrong, so that each caller can answer in its own way (the CLI: exit code 2 for
// bad_input, 3 for environment, 1 otherwise).
enum class ErrorKind : std::uint8_t { bad_input, environment, corrupt, io, no_space, closed };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Of an errno; ENODATA stands for a file that ends early.
inline ErrorKind kind_of(int error) {
  if (error == ENODATA) return ErrorKind::corrupt;
  return error == ENOSPC || error == EDQUOT || error == EFBIG ? ErrorKind::no_space : ErrorKind::io;
}

}  // namespace navis
