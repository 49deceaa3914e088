// Decoding: the chosen entry of every subspace, one after the other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace navis {

// An entry is Words words of 4 bytes; a copy whose length the compiler knows is two instructions,
// not a call.
template <std::size_t Words>
void copy_words(const std::byte* entries, const std::uint8_t* code, std::size_t parts,
                std::byte* out) {
  for (std::size_t m = 0; m < parts; ++m) {
    std::memcpy(out + m * Words * 4, entries + (m * 256 + code[m]) * Words * 4, Words * 4);
  }
}

inline void copy_parts(const std::byte* entries, std::size_t words, const std::uint8_t* code,
                       std::size_t parts, std::byte* out) {
  // By words, from 1.
  static constexpr auto kCopies = []<std::size_t... Less>(std::index_sequence<Less...>) {
    return std::array{&copy_words<Less + 1>...};
  }(std::make_index_sequence<16>{});
  if (words <= kCopies.size()) {
    kCopies[words - 1](entries, code, parts, out);
    return;
  }
  for (std::size_t m = 0; m < parts; ++m) {
    std::memcpy(out + m * words * 4, entries + (m * 256 + code[m]) * words * 4, words * 4);
  }
}

}  // namespace navis
