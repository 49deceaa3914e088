// SmartComp: of a tile's gradient, the k entries of largest magnitude (Smart-Infinity, section on
// gradient compression), with indices of 16 bits within blocks of 65,536 entries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "types.hpp"

namespace smart_infinity::topk {

inline constexpr std::size_t kBlock = 65536;

// Of n entries ratio times as many, rounded down, but one at least.
std::size_t kept(std::size_t n, double ratio);
// Bytes of k of n entries encoded: a count of 32 bits a block, k indices of 16 bits, filled up to 4
// bytes, k values.
std::size_t encoded_bytes(std::size_t n, std::size_t k, Dtype values);
// The same, when k is 1 to n and `room` has them; else Error(bad_input).
std::size_t checked_bytes(std::size_t n, std::size_t k, Dtype values, std::size_t room);

// Encodes exactly k entries, the largest magnitudes, of equals the earlier ones; NaN counts as
// larger than all. `out` has encoded_bytes(). With `residual` (n floats) what was not sent before
// is added first, and what is not sent now, rounding included, is left there (error feedback).
// `scratch` is kept between calls.
struct Scratch {
  std::vector<std::uint32_t> counts, places;
  std::vector<float> candidates;
};
void encode(const float* gradient, std::size_t n, std::size_t k, Dtype values, std::byte* out,
            float* residual, Scratch& scratch);

// An encoding's parts. Of block b the entries are [starts[b], starts[b + 1]).
struct Encoded {
  std::vector<std::uint32_t> starts;
  const std::byte *indices = nullptr, *values = nullptr;
};
// Error(bad_input) when the bytes are no encoding of n entries: counts that are too large or do not
// fit the length, indices that do not rise or lie past the end.
Encoded parse(std::span<const std::byte> encoded, std::size_t n, Dtype values);

// The dense gradient: n floats, zeros where nothing was sent. Errors as parse().
void decode(std::span<const std::byte> encoded, std::size_t n, Dtype values, float* out);

}  // namespace smart_infinity::topk
