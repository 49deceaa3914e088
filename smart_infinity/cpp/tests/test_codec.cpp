#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "../codec.hpp"
#include "../crc32c.hpp"
#include "../half.hpp"
#include "helpers.hpp"

namespace smart_infinity {
namespace {

TEST_CASE("codec: bfloat16 moments are one of the two neighbours, and right on average") {
  const std::size_t n = 4096, rounds = 400;
  const std::vector<float> values = normals(n, 1);
  std::vector<std::byte> stored(2 * n);
  std::vector<float> back(n);
  std::vector<double> sum(n);
  for (std::size_t step = 0; step < rounds; ++step) {
    codec::encode_bf16(values.data(), n, {step, 3, 1, 17}, stored.data());
    codec::decode_bf16(stored.data(), n, back.data());
    for (std::size_t i = 0; i < n; ++i) {
      CHECK_MESSAGE(std::abs(back[i] - values[i]) <= std::abs(values[i]) / 128, i);
      sum[i] += back[i];
    }
  }
  double bias = 0, size = 0;
  for (std::size_t i = 0; i < n; ++i) {
    bias += (sum[i] / rounds - values[i]) * (values[i] > 0 ? 1 : -1);
    size += std::abs(values[i]);
  }
  CHECK(std::abs(bias / size) < 2e-5);  // to nearest it would be up to 2e-3 for one value
}

TEST_CASE("codec: the dice depend on element, parameter, array and step, not on the cut") {
  const std::size_t n = 1024;
  const std::vector<float> values = normals(n, 2);
  auto encoded = [&](codec::Place place, std::size_t cut) {
    std::vector<std::byte> stored(2 * n);
    for (std::size_t at = 0; at < n; at += cut) {
      codec::Place here = place;
      here.element += at;
      codec::encode_bf16(values.data() + at, std::min(cut, n - at), here, stored.data() + 2 * at);
    }
    return stored;
  };
  const codec::Place place{5, 1, 1, 1000};
  CHECK(encoded(place, n) == encoded(place, 1));
  CHECK(encoded(place, n) == encoded(place, 100));
  for (const codec::Place other : {codec::Place{6, 1, 1, 1000}, codec::Place{5, 2, 1, 1000},
                                   codec::Place{5, 1, 2, 1000}, codec::Place{5, 1, 1, 1001}}) {
    CHECK(encoded(place, n) != encoded(other, n));
  }
}

TEST_CASE("codec: what needs no rounding stays as it is") {
  std::vector<float> values;
  for (int i = 0; i < 512; ++i) {
    values.push_back(bf16_to_float(static_cast<std::uint16_t>(0x3F00 + i)));
  }
  std::vector<std::byte> stored(2 * values.size());
  std::vector<float> back(values.size());
  for (std::uint64_t step = 0; step < 20; ++step) {
    codec::encode_bf16(values.data(), values.size(), {step, 0, 2, 0}, stored.data());
    codec::decode_bf16(stored.data(), values.size(), back.data());
    CHECK(back == values);
  }
}

TEST_CASE(
    "codec: blocks of 8 bits are near, right on average, and second moments stay above zero") {
  const std::size_t n = 1024, rounds = 400;
  for (const std::uint32_t array : {1U, 2U}) {
    std::vector<float> values = normals(n, 4);
    // Magnitudes over many orders, as second moments have them.
    for (std::size_t i = 0; i < n; ++i) {
      values[i] *= std::exp(-static_cast<float>(i % 97) / (array == 1 ? 16.0F : 6.0F));
      if (array == 2) values[i] = std::abs(values[i]);
    }
    values[7] = 0;
    std::vector<std::byte> codes(n), scales(n / codec::kBlock * 4);
    std::vector<float> back(n);
    double off = 0, size = 0;
    std::vector<double> sum(n);
    for (std::size_t step = 0; step < rounds; ++step) {
      codec::encode_blocks(values.data(), n, {step, 0, array, 0}, codes.data(), scales.data());
      codec::decode_blocks(array, codes.data(), scales.data(), n, back.data());
      for (std::size_t i = 0; i < n; ++i) {
        CHECK_MESSAGE((back[i] == 0 || (back[i] < 0) == (values[i] < 0)), i);
        if (array == 2 && values[i] > 0) CHECK_MESSAGE(back[i] > 0, i);
        sum[i] += back[i];
      }
      CHECK(back[7] == 0);
    }
    for (std::size_t i = 0; i < n; ++i) {
      off += (sum[i] / rounds - values[i]) * (values[i] > 0 ? 1 : -1);
      size += std::abs(values[i]);
    }
    CHECK(std::abs(off / size) < 1e-3);
    // A second time nothing changes: what was decoded is a code.
    std::vector<std::byte> again(n), scales_again(scales.size());
    codec::encode_blocks(back.data(), n, {999, 0, array, 0}, again.data(), scales_again.data());
    std::size_t changed = 0;
    for (std::size_t i = 0; i < n; ++i) changed += again[i] != codes[i] ? 1 : 0;
    CHECK(changed <= n / 100);
  }
}

TEST_CASE("crc32c: known values, by instruction and by table, and page sums") {
  CHECK(crc32c(0, "123456789", 9) == 0xE3069283U);
  CHECK(crc32c_portable(0, "123456789", 9) == 0xE3069283U);
  const std::vector<float> data = normals(40000, 5);
  const auto* bytes = reinterpret_cast<const char*>(data.data());
  for (const std::size_t n : {0, 1, 7, 8, 4095, 4096, 4097, 5 * 4096, 160000}) {
    CHECK(crc32c(0, bytes, n) == crc32c_portable(0, bytes, n));
    CHECK(crc32c(crc32c(0, bytes, n / 3), bytes + n / 3, n - n / 3) == crc32c(0, bytes, n));
    std::vector<std::uint32_t> sums;
    for (std::size_t at = 0; at < n; at += 4096) {
      sums.push_back(crc32c_portable(0, bytes + at, std::min<std::size_t>(4096, n - at)));
    }
    CHECK(page_sum(bytes, n) == crc32c_portable(0, sums.data(), sums.size() * 4));
  }
}

}  // namespace
}  // namespace smart_infinity
