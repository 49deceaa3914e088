#include "topk.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "half.hpp"
#include "kernels.hpp"

namespace smart_infinity::topk {
namespace {

std::size_t blocks_of(std::size_t n) { return (n + kBlock - 1) / kBlock; }

std::size_t index_bytes(std::size_t k) { return (2 * k + 3) / 4 * 4; }

std::uint32_t magnitude(float value) { return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU; }

// The k-th largest magnitude, and how many of that very magnitude are among the k largest: radix
// selection over 11, 10 and 10 bits, each pass counting only what the ones before left undecided.
struct Threshold {
  std::uint32_t bits;
  std::size_t equals;
};

Threshold threshold(const float* values, std::size_t n, std::size_t k, Scratch& scratch) {
  std::uint32_t prefix = 0;
  std::uint32_t decided = 0;  // mask of the bits of `prefix` that are known
  std::size_t wanted = k;
  constexpr struct {
    std::uint32_t shift, bits;
  } kPasses[] = {{20, 11}, {10, 10}, {0, 10}};
  for (const auto pass : kPasses) {
    // Four counters an entry: neighbours that fall together do not wait for each other.
    const std::size_t size = std::size_t{1} << pass.bits;
    scratch.counts.assign(4 * size, 0);
    std::uint32_t* counts = scratch.counts.data();
    if (decided == 0) {
      std::size_t i = 0;
      for (; i + 4 <= n; i += 4) {
        for (std::size_t j = 0; j < 4; ++j) {
          ++counts[j * size + (magnitude(values[i + j]) >> pass.shift)];
        }
      }
      for (; i < n; ++i) ++counts[magnitude(values[i]) >> pass.shift];
    } else {
      for (std::size_t i = 0; i < n; ++i) {
        const std::uint32_t bits = magnitude(values[i]);
        if ((bits & decided) == prefix) ++counts[(bits >> pass.shift) & (size - 1)];
      }
    }
    std::size_t digit = size;
    while (digit-- > 0) {
      const std::size_t here = std::size_t{counts[digit]} + counts[size + digit] +
                               counts[2 * size + digit] + counts[3 * size + digit];
      if (here >= wanted) break;
      wanted -= here;
    }
    prefix |= static_cast<std::uint32_t>(digit) << pass.shift;
    decided |= static_cast<std::uint32_t>(size - 1) << pass.shift;
  }
  return {prefix, wanted};
}

template <class Value>
void put(std::byte*& out, Value value) {
  std::memcpy(out, &value, sizeof value);
  out += sizeof value;
}

float get(Dtype type, const std::byte* from) {
  if (type == Dtype::float32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return type == Dtype::bfloat16 ? bf16_to_float(half) : f16_to_float(half);
}

}  // namespace

std::size_t kept(std::size_t n, double ratio) {
  const auto k = static_cast<std::size_t>(ratio * static_cast<double>(n));
  return std::clamp<std::size_t>(k, std::min<std::size_t>(n, 1), n);
}

std::size_t encoded_bytes(std::size_t n, std::size_t k, Dtype values) {
  return blocks_of(n) * 4 + index_bytes(k) + k * bytes_of(values);
}

void encode(const float* gradient, std::size_t n, std::size_t k, Dtype values, std::byte* out,
            float* residual, Scratch& scratch) {
  const float* sum = gradient;
  if (residual != nullptr) {
    for (std::size_t i = 0; i < n; ++i) residual[i] += gradient[i];
    sum = residual;
  }
  const Threshold least = threshold(sum, n, k, scratch);
  std::byte* counts = out;
  std::byte* indices = counts + blocks_of(n) * 4;
  std::byte* sent = indices + index_bytes(k);
  if (index_bytes(k) > 2 * k) std::memset(indices + 2 * k, 0, 2);
  std::size_t equals = least.equals;
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t end = std::min(n, begin + kBlock);
    std::uint32_t count = 0;
    for (std::size_t i = begin; i < end; ++i) {
      const std::uint32_t bits = magnitude(sum[i]);
      if (bits < least.bits) continue;
      if (bits == least.bits) {
        if (equals == 0) continue;
        --equals;
      }
      put(indices, static_cast<std::uint16_t>(i - begin));
      const float value = sum[i];
      if (values == Dtype::float32) {
        put(sent, value);
      } else {
        put(sent, values == Dtype::bfloat16 ? float_to_bf16(value) : float_to_f16(value));
      }
      if (residual != nullptr) residual[i] = value - get(values, sent - bytes_of(values));
      ++count;
    }
    put(counts, count);
  }
}

void decode(std::span<const std::byte> encoded, std::size_t n, Dtype values, float* out) {
  const auto refuse = [](const char* why) {
    throw Error(ErrorKind::bad_input, std::string("a compressed gradient: ") + why);
  };
  const std::size_t blocks = blocks_of(n);
  if (encoded.size() < 4 * blocks) refuse("cut off in its counts");
  std::size_t k = 0;
  for (std::size_t block = 0; block < blocks; ++block) {
    std::uint32_t count;
    std::memcpy(&count, encoded.data() + 4 * block, sizeof count);
    if (count > std::min(kBlock, n - block * kBlock)) refuse("more entries than a block has");
    k += count;
  }
  if (encoded.size() != encoded_bytes(n, k, values)) refuse("not as long as its counts say");
  std::fill_n(out, n, 0.0F);
  const std::byte* index = encoded.data() + 4 * blocks;
  const std::byte* value = index + index_bytes(k);
  for (std::size_t block = 0; block < blocks; ++block) {
    std::uint32_t count;
    std::memcpy(&count, encoded.data() + 4 * block, sizeof count);
    const std::size_t begin = block * kBlock;
    for (; count > 0; --count, index += 2, value += bytes_of(values)) {
      std::uint16_t at;
      std::memcpy(&at, index, sizeof at);
      if (begin + at >= n) refuse("an index past the tile's end");
      out[begin + at] = get(values, value);
    }
  }
}

}  // namespace smart_infinity::topk
