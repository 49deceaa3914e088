// What the core's files share: number formats, optimizers, errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace smart_infinity {

// Of parameters and gradients as they cross the link.
enum class Dtype : std::uint8_t { float32, bfloat16, float16 };
// Of moments as they are stored: blocks of 256 numbers of 8 bits share a scale.
enum class Moments : std::uint8_t { float32, bfloat16, blocks8 };
enum class Kind : std::uint8_t { adamw, adam, adagrad, sgd };

constexpr std::size_t bytes_of(Dtype type) { return type == Dtype::float32 ? 4 : 2; }

// Arrays of moments beside the parameters.
constexpr std::size_t moments_of(Kind kind, bool momentum) {
  if (kind == Kind::sgd) return momentum ? 1 : 0;
  return kind == Kind::adagrad ? 1 : 2;
}

enum class ErrorKind : std::uint8_t {
  bad_input,    // what was asked for cannot be: the caller's to change
  environment,  // the machine lacks something
  corrupt,      // stored state is damaged
  io,           // the system refused a transfer
  protocol,     // calls in an order that has no meaning
};

constexpr const char* name_of(ErrorKind kind) {
  constexpr const char* kNames[] = {"bad_input", "environment", "corrupt", "io", "protocol"};
  return kNames[static_cast<std::size_t>(kind)];
}

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace smart_infinity
