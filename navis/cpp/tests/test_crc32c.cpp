#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "../crc32c.hpp"

namespace navis {
namespace {

std::uint32_t by_bits(const unsigned char* bytes, std::size_t count) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (std::size_t i = 0; i < count; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0x82F63B78U : 0U);
  }
  return ~crc;
}

void check_both(const std::string& bytes, std::uint32_t expected) {
  CHECK(crc32c(0, bytes.data(), bytes.size()) == expected);
  CHECK(crc32c_portable(0, bytes.data(), bytes.size()) == expected);
}

TEST_CASE("crc32c: the check values of RFC 3720") {
  check_both("", 0);
  check_both("123456789", 0xE3069283U);
  check_both(std::string(32, '\0'), 0x8A9136AAU);
  check_both(std::string(32, '\xFF'), 0x62A8AB43U);
  std::string up, down;
  for (int i = 0; i < 32; ++i) {
    up += static_cast<char>(i);
    down += static_cast<char>(31 - i);
  }
  check_both(up, 0x46DD794EU);
  check_both(down, 0x113FDB5CU);
}

TEST_CASE("crc32c: both versions agree at every length and alignment") {
  std::mt19937 random(4);
  std::vector<unsigned char> bytes(20000);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
  for (std::size_t count = 0; count <= 4200; ++count) {
    const unsigned char* at = bytes.data() + count % 9;
    const std::uint32_t expected = by_bits(at, count);
    REQUIRE(crc32c(0, at, count) == expected);
    REQUIRE(crc32c_portable(0, at, count) == expected);
  }
  for (std::size_t count : {8064, 8065, 12289, 19990}) {
    CHECK(crc32c(0, bytes.data() + 3, count) == by_bits(bytes.data() + 3, count));
  }
}

TEST_CASE("crc32c: goes on from where it was, over a span too") {
  std::mt19937 random(5);
  std::vector<std::byte> bytes(9000);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const std::uint32_t whole = crc32c(bytes);
  CHECK(whole == crc32c_portable(0, bytes.data(), bytes.size()));
  for (std::size_t cut : {0, 1, 7, 8, 383, 384, 385, 4032, 4096, 8999, 9000}) {
    const std::uint32_t first = crc32c(0, bytes.data(), cut);
    CHECK(crc32c(first, bytes.data() + cut, bytes.size() - cut) == whole);
    CHECK(crc32c_portable(first, bytes.data() + cut, bytes.size() - cut) == whole);
  }
  bytes[5000] ^= std::byte{1};
  CHECK(crc32c(bytes) != whole);
}

}  // namespace
}  // namespace navis
