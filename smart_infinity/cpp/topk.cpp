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
      for (std::size_t i = 0; i < n; ++i) {
        ++counts[i % 4 * size + (magnitude(values[i]) >> pass.shift)];
      }
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

// The same, when k are few: most values are seen to be too small at once, by a bound that is found
// in a sample, and only the others are counted. False where the bound turns out to be none.
bool threshold_of_few(const float* values, std::size_t n, std::size_t k, Scratch& scratch,
                      Threshold& least) {
  constexpr std::size_t kSample = 4096;
  if (n < 4 * kSample || k > n / 8) return false;
  const std::size_t stride = n / kSample;
  scratch.candidates.resize(kSample);
  for (std::size_t i = 0; i < kSample; ++i) {
    // Not all at the same place of their strides: gradients are matrices, and have columns.
    const std::size_t place = (i * 0x9E3779B97F4A7C15U >> 32U) % stride;
    scratch.candidates[i] = values[i * stride + place];
  }
  // So many of the sample are expected among the k largest; five deviations more are too many.
  const double expected =
      static_cast<double>(kSample) * static_cast<double>(k) / static_cast<double>(n);
  const auto rank = static_cast<std::size_t>(expected + 5 * std::sqrt(expected) + 8);
  const std::uint32_t bound =
      threshold(scratch.candidates.data(), kSample, std::min(rank, kSample), scratch).bits;
  if (bound == 0) return false;
  scratch.candidates.clear();
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t count = kernels::at_least(values + begin, std::min(kBlock, n - begin), bound,
                                                scratch.places.data());
    if (scratch.candidates.size() + count > n / 4) return false;
    for (std::size_t i = 0; i < count; ++i) {
      scratch.candidates.push_back(values[begin + scratch.places[i]]);
    }
  }
  if (scratch.candidates.size() < k) return false;
  least = threshold(scratch.candidates.data(), scratch.candidates.size(), k, scratch);
  return true;
}

template <class Value>
void put(std::byte*& out, Value value) {
  std::memcpy(out, &value, sizeof value);
  out += sizeof value;
}

std::uint16_t index_at(const std::byte* indices, std::size_t i) {
  std::uint16_t index;
  std::memcpy(&index, indices + 2 * i, sizeof index);
  return index;
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

std::size_t checked_bytes(std::size_t n, std::size_t k, Dtype values, std::size_t room) {
  if (k < 1 || k > n) {
    throw Error(ErrorKind::bad_input, "k=" + std::to_string(k) + ": use 1 to " + std::to_string(n));
  }
  const std::size_t bytes = encoded_bytes(n, k, values);
  if (room < bytes) throw Error(ErrorKind::bad_input, "no room for the encoded gradient");
  return bytes;
}

void encode(const float* gradient, std::size_t n, std::size_t k, Dtype values, std::byte* out,
            float* residual, Scratch& scratch) {
  const float* sum = gradient;
  if (residual != nullptr) {
    for (std::size_t i = 0; i < n; ++i) residual[i] += gradient[i];
    sum = residual;
  }
  scratch.places.resize(kBlock + kernels::kSlack);
  Threshold least{};
  if (!threshold_of_few(sum, n, k, scratch, least)) least = threshold(sum, n, k, scratch);
  std::byte* counts = out;
  std::byte* indices = counts + blocks_of(n) * 4;
  std::byte* sent = indices + index_bytes(k);
  if (index_bytes(k) > 2 * k) std::memset(indices + 2 * k, 0, 2);
  std::size_t equals = least.equals;
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t candidates = kernels::at_least(sum + begin, std::min(kBlock, n - begin),
                                                     least.bits, scratch.places.data());
    std::uint32_t count = 0;
    for (std::size_t i = 0; i < candidates; ++i) {
      const std::uint32_t place = scratch.places[i];
      const float value = sum[begin + place];
      if (magnitude(value) == least.bits) {
        if (equals == 0) continue;
        --equals;
      }
      put(indices, static_cast<std::uint16_t>(place));
      if (values == Dtype::float32) {
        put(sent, value);
      } else {
        put(sent, values == Dtype::bfloat16 ? float_to_bf16(value) : float_to_f16(value));
      }
      if (residual != nullptr) {
        residual[begin + place] = value - get(values, sent - bytes_of(values));
      }
      ++count;
    }
    put(counts, count);
  }
}

Encoded parse(std::span<const std::byte> encoded, std::size_t n, Dtype values) {
  const auto refuse = [](const char* why) {
    throw Error(ErrorKind::bad_input, std::string("a compressed gradient: ") + why);
  };
  const std::size_t blocks = blocks_of(n);
  if (encoded.size() < 4 * blocks) refuse("cut off in its counts");
  Encoded parts;
  parts.starts.reserve(blocks + 1);
  std::size_t k = 0;
  for (std::size_t block = 0; block < blocks; ++block) {
    std::uint32_t count;
    std::memcpy(&count, encoded.data() + 4 * block, sizeof count);
    if (count > std::min(kBlock, n - block * kBlock)) refuse("more entries than a block has");
    parts.starts.push_back(static_cast<std::uint32_t>(k));
    k += count;
  }
  parts.starts.push_back(static_cast<std::uint32_t>(k));
  if (encoded.size() != encoded_bytes(n, k, values)) refuse("not as long as its counts say");
  parts.indices = encoded.data() + 4 * blocks;
  parts.values = parts.indices + index_bytes(k);
  for (std::size_t block = 0; block < blocks; ++block) {
    const std::size_t elements = std::min(kBlock, n - block * kBlock);
    std::int32_t before = -1;
    for (std::size_t i = parts.starts[block]; i < parts.starts[block + 1]; ++i) {
      const std::uint16_t at = index_at(parts.indices, i);
      if (at <= before) refuse("indices that do not rise");
      before = at;
    }
    if (before >= static_cast<std::int32_t>(elements)) refuse("an index past the tile's end");
  }
  return parts;
}

void decode(std::span<const std::byte> encoded, std::size_t n, Dtype values, float* out) {
  const Encoded parts = parse(encoded, n, values);
  std::fill_n(out, n, 0.0F);
  for (std::size_t block = 0; block + 1 < parts.starts.size(); ++block) {
    for (std::size_t i = parts.starts[block]; i < parts.starts[block + 1]; ++i) {
      out[block * kBlock + index_at(parts.indices, i)] =
          get(values, parts.values + i * bytes_of(values));
    }
  }
}

}  // namespace smart_infinity::topk
