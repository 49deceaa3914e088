#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../kernels.hpp"

namespace navis {
namespace {

using kernels::Level;

std::vector<Level> levels() {
  std::vector<Level> all{Level::generic};
  if (kernels::supported(Level::avx2)) {
    all.push_back(Level::avx2);
  } else {
    MESSAGE("no AVX2, FMA and F16C here: only the generic level is tested");
  }
  return all;
}

struct RestoreLevel {
  Level before = kernels::active();
  ~RestoreLevel() { kernels::use(before); }
};

// Memory whose last byte is followed by a page that cannot be read or written, since sanitizers
// do not see what masked instructions touch.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t n) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    whole_ = (n * sizeof(T) + page - 1) / page * page + page;
    base_ = ::mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(base_ != MAP_FAILED);
    char* end = static_cast<char*>(base_) + whole_ - page;
    REQUIRE(::mprotect(end, page, PROT_NONE) == 0);
    data_ = reinterpret_cast<T*>(end - n * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { ::munmap(base_, whole_); }
  T* data() const { return data_; }
  T& operator[](std::size_t i) const { return data_[i]; }

 private:
  void* base_ = nullptr;
  std::size_t whole_ = 0;
  T* data_ = nullptr;
};

std::vector<std::size_t> lengths() {
  std::vector<std::size_t> all;
  for (std::size_t n = 0; n <= 70; ++n) all.push_back(n);
  for (std::size_t n : {96, 100, 127, 128, 129, 384, 767, 768, 1024, 1536, 3072}) all.push_back(n);
  return all;
}

// Against sums in double: at most 2e-6 of the sum of the terms' magnitudes (a chain of n / 16
// float additions; 3072 / 16 * 2^-24 is the worst case of 1.1e-5, which rounding never aligns to).
constexpr double kTolerance = 2e-6;

TEST_CASE("kernels: l2 and dot agree with sums in double at every length and level") {
  const RestoreLevel restore;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (Level level : levels()) {
    kernels::use(level);
    CHECK(kernels::active() == level);
    for (std::size_t n : lengths()) {
      CAPTURE(n);
      const Guarded<float> a(n), b(n);
      double squares = 0, products = 0, magnitudes = 0;
      for (std::size_t i = 0; i < n; ++i) {
        a[i] = normal(random);
        b[i] = normal(random) + 3;
        squares += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
        products += double{a[i]} * b[i];
        magnitudes += std::abs(double{a[i]} * b[i]);
      }
      CHECK(std::abs(kernels::l2(a.data(), b.data(), n) - squares) <= kTolerance * squares);
      CHECK(std::abs(kernels::dot(a.data(), b.data(), n) - products) <= kTolerance * magnitudes);
      CHECK(kernels::l2(a.data(), a.data(), n) == 0.0F);
      CHECK(kernels::l2(a.data(), b.data(), n) == kernels::l2(b.data(), a.data(), n));
    }
  }
}

// Written apart from the kernels, by value and not by bits.
float half_by_value(std::uint16_t half) {
  const int exponent = (half >> 10) & 0x1F;
  const int mantissa = half & 0x3FF;
  const float sign = (half & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<float>::infinity()
                         : std::numeric_limits<float>::quiet_NaN();
  }
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

TEST_CASE("kernels: all 65536 halves are right, and the same bits at every level") {
  const RestoreLevel restore;
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<std::vector<float>> results;
  for (Level level : levels()) {
    kernels::use(level);
    std::vector<float> out(halves.size());
    kernels::to_float(DataType::float16, halves.data(), halves.size(), out.data());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < halves.size(); ++i) {
      const float expected = half_by_value(halves[i]);
      const bool right = std::isnan(expected) ? std::isnan(out[i])
                                              : std::bit_cast<std::uint32_t>(expected) ==
                                                    std::bit_cast<std::uint32_t>(out[i]);
      wrong += right ? 0 : 1;
    }
    CHECK(wrong == 0);
    results.push_back(out);
  }
  for (const std::vector<float>& other : results) {
    CHECK(std::memcmp(other.data(), results[0].data(), other.size() * sizeof(float)) == 0);
  }
}

template <class T>
void check_conversion(DataType type) {
  for (std::size_t n : lengths()) {
    CAPTURE(n);
    const Guarded<T> values(n);
    const Guarded<float> out(n);
    for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<T>(i * 37 + 5);
    kernels::to_float(type, values.data(), n, out.data());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) wrong += out[i] == static_cast<float>(values[i]) ? 0 : 1;
    CHECK(wrong == 0);
  }
}

TEST_CASE("kernels: stored values become floats at every length and level") {
  const RestoreLevel restore;
  for (Level level : levels()) {
    kernels::use(level);
    check_conversion<std::uint8_t>(DataType::uint8);
    check_conversion<std::int8_t>(DataType::int8);
    check_conversion<float>(DataType::float32);
    for (std::size_t n : lengths()) {
      const Guarded<std::uint16_t> halves(n);
      const Guarded<float> out(n);
      for (std::size_t i = 0; i < n; ++i) halves[i] = 0x3C00;
      kernels::to_float(DataType::float16, halves.data(), n, out.data());
      for (std::size_t i = 0; i < n; ++i) CHECK(out[i] == 1.0F);
    }
    const std::vector<std::uint8_t> odd{0, 0x00, 0x3C, 0x00, 0xC0};  // 1 and -2 at an odd address
    float out[2];
    kernels::to_float(DataType::float16, odd.data() + 1, 2, out);
    CHECK(out[0] == 1.0F);
    CHECK(out[1] == -2.0F);
  }
}

TEST_CASE("kernels: adc adds up the table's entries, the same at every level") {
  const RestoreLevel restore;
  std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform;
  for (std::size_t subspaces : {1, 3, 4, 7, 8, 15, 32, 63, 64, 65, 96, 97, 192}) {
    std::vector<float> table(subspaces * 256);
    for (float& value : table) value = uniform(random);
    for (std::size_t count : {0, 1, 3, 4, 5, 8, 9, 33}) {
      const Guarded<std::uint8_t> codes(count * subspaces);
      std::vector<const std::uint8_t*> rows(count);
      for (std::size_t i = 0; i < count * subspaces; ++i) {
        codes[i] = static_cast<std::uint8_t>(random());
      }
      for (std::size_t i = 0; i < count; ++i) rows[i] = codes.data() + (count - 1 - i) * subspaces;
      std::vector<float> first(count);
      for (Level level : levels()) {
        kernels::use(level);
        const Guarded<float> out(count);
        kernels::adc(table.data(), subspaces, rows.data(), count, out.data());
        for (std::size_t i = 0; i < count; ++i) {
          double expected = 0;
          for (std::size_t m = 0; m < subspaces; ++m) expected += table[m * 256 + rows[i][m]];
          CHECK(std::abs(out[i] - expected) <= kTolerance * expected);
          if (level == Level::generic) first[i] = out[i];
          CHECK(out[i] == first[i]);
        }
      }
    }
  }
}

TEST_CASE("kernels: distances to 256 transposed centroids and the place of the least") {
  const RestoreLevel restore;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (Level level : levels()) {
    kernels::use(level);
    for (std::size_t width : {1, 2, 3, 4, 7, 8, 9, 16, 24}) {
      const Guarded<float> part(width), transposed(width * 256), out(256);
      for (std::size_t j = 0; j < width; ++j) part[j] = normal(random);
      for (std::size_t i = 0; i < width * 256; ++i) transposed[i] = normal(random);
      kernels::l2_to_256(part.data(), transposed.data(), width, out.data());
      std::size_t least = 0;
      for (std::size_t c = 0; c < 256; ++c) {
        double expected = 0;
        for (std::size_t j = 0; j < width; ++j) {
          const double difference = double{part[j]} - transposed[j * 256 + c];
          expected += difference * difference;
        }
        CHECK(std::abs(out[c] - expected) <= kTolerance * expected);
        if (out[c] < out[least]) least = c;
      }
      CHECK(kernels::argmin_256(out.data()) == least);
    }
    std::vector<float> values(256, 7.0F);
    CHECK(kernels::argmin_256(values.data()) == 0);
    for (std::size_t place = 0; place < 255; ++place) {  // ties: the lowest
      std::fill(values.begin(), values.end(), 7.0F);
      values[place] = values[255] = -1.0F;
      CHECK(kernels::argmin_256(values.data()) == place);
    }
  }
}

// Run by the next test in a process of its own, because the choice is made once.
TEST_CASE("kernels: distances of 7-bit rows are exact at every length and level") {
  const RestoreLevel restore;
  std::mt19937 random(11);
  for (std::size_t lines = 0; lines <= 70; ++lines) {
    const std::size_t n = lines * kernels::kRowBytes;
    const Guarded<std::byte> a(n), b(n);
    for (const bool extreme : {false, true}) {
      std::uint32_t expected = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const auto value = [&] { return extreme ? (random() & 1U) * 127 : random() & 127U; };
        const std::uint32_t x = value(), y = extreme ? 127 - x : value();
        a[i] = static_cast<std::byte>(x);
        b[i] = static_cast<std::byte>(y);
        expected += (x - y) * (x - y);
      }
      for (const Level level : levels()) {
        kernels::use(level);
        CHECK(kernels::l2_of_rows(a.data(), b.data(), n) == expected);
      }
    }
  }
}

TEST_CASE("kernels: say the level" * doctest::skip()) {
  try {
    std::printf("level=%s\n", kernels::active() == Level::generic ? "generic" : "avx2");
  } catch (const Error& error) {
    std::printf("refused=%d %s\n", static_cast<int>(error.kind() == ErrorKind::environment),
                error.what());
  }
}

std::string said_with(const std::string& value) {
  char self[4096] = {};
  REQUIRE(::readlink("/proc/self/exe", self, sizeof self - 1) > 0);
  const std::string command =
      "NAVIS_SIMD='" + value + "' '" + self + "' --no-skip --test-case='kernels: say the level'";
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string said;
  char buffer[512];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) said += buffer;
  ::pclose(pipe);
  return said;
}

TEST_CASE("kernels: NAVIS_SIMD overrides the choice, and a bad one is refused") {
  const bool avx2 = kernels::supported(Level::avx2);
  CHECK(said_with("generic").find("level=generic") != std::string::npos);
  CHECK(said_with("avx2").find(avx2 ? "level=avx2" : "refused=1") != std::string::npos);
  CHECK(said_with("").find(avx2 ? "level=avx2" : "level=generic") != std::string::npos);
  CHECK(said_with("sse9").find("refused=1 NAVIS_SIMD=sse9") != std::string::npos);
}

}  // namespace
}  // namespace navis
