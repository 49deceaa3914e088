// The same tests for what selects and encodes: topk.cpp, and CUDA's kernels run on the processor.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "../topk.hpp"
#include "cuda_on_cpu.hpp"
#include "helpers.hpp"
// After CUDA's words.
#include "../cuda/topk_kernels.cuh"

namespace smart_infinity {
namespace {

using Bytes = std::vector<std::byte>;
using Encode = Bytes (*)(const std::vector<float>& gradient, std::size_t k, Dtype type,
                         float* residual);

Bytes encode_here(const std::vector<float>& gradient, std::size_t k, Dtype type, float* residual) {
  static topk::Scratch scratch;
  Bytes encoded(topk::encoded_bytes(gradient.size(), k, type), std::byte{0xAB});
  topk::encode(gradient.data(), gradient.size(), k, type, encoded.data(), residual, scratch);
  return encoded;
}

// As cuda/topk.cu does it, in memory of the processor.
Bytes encode_by_kernels(const std::vector<float>& gradient, std::size_t k, Dtype type,
                        float* residual) {
  const std::size_t n = gradient.size();
  Bytes encoded(topk::encoded_bytes(n, k, type));
  cuda::Selection selection{};
  std::vector<std::uint32_t> bins(cuda::kBins);
  std::vector<cuda::Counts> chunks(cuda::chunks_of(n) + 1);
  const cuda::Places places{(n + topk::kBlock - 1) / topk::kBlock * 4,
                            encoded.size() - k * bytes_of(type)};
  cuda::encode(cuda::LaunchHere{}, gradient.data(), n, static_cast<std::uint32_t>(k), type,
               encoded.data(), places, residual, {&selection, bins.data(), chunks.data()});
  return encoded;
}

struct Encoder {
  const char* name;
  Encode encode;
};
constexpr Encoder kEncoders[] = {{"topk.cpp", encode_here}, {"CUDA's kernels", encode_by_kernels}};

std::uint32_t magnitude(float value) { return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU; }

// The k largest, of equals the earlier, by a stable sort.
std::vector<float> largest(const std::vector<float>& values, std::size_t k) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return magnitude(values[a]) > magnitude(values[b]);
  });
  std::vector<float> kept(values.size());
  for (std::size_t i = 0; i < k; ++i) kept[order[i]] = values[order[i]];
  return kept;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Numbers of several kinds, n of each.
std::vector<std::vector<float>> gradients(std::size_t n) {
  const auto seed = static_cast<unsigned>(n);
  std::vector<std::vector<float>> all{normals(n, seed), normals(n, seed, 1e-41F),
                                      std::vector<float>(n), normals(n, seed + 1)};
  for (float& value : all[3]) value = static_cast<float>(static_cast<int>(2 * value));  // equals
  all.push_back(normals(n, seed + 2));
  all[4][n / 2] = std::numeric_limits<float>::quiet_NaN();
  all[4][n / 3] = -std::numeric_limits<float>::infinity();
  return all;
}

void check_exact(const Encoder& encoder, const std::vector<float>& gradient, std::size_t k) {
  std::vector<float> out(gradient.size(), 7);
  topk::decode(encoder.encode(gradient, k, Dtype::float32, nullptr), out.size(), Dtype::float32,
               out.data());
  const bool right = same_bits(out, largest(gradient, k));
  CHECK_MESSAGE(right, encoder.name, " n ", out.size(), " k ", k);
}

TEST_CASE("topk: exactly the k largest, of equals the earlier") {
  for (const Encoder& encoder : kEncoders) {
    for (const std::size_t n : {1UL, 2UL, 128UL, 1025UL}) {
      const auto all = gradients(n);
      for (std::size_t i = 0; i < all.size(); ++i) {
        for (const std::size_t k : {std::size_t{1}, (n + 2) / 3, n}) {
          check_exact(encoder, all[i], k);
        }
      }
    }
    // A second block of one entry.
    check_exact(encoder, normals(65537, 3), 20001);
  }
}

TEST_CASE("topk: what is sent and what is left make the whole") {
  for (const Encoder& encoder : kEncoders) {
    for (const std::size_t n : {100UL, 3000UL}) {
      for (const Dtype type : {Dtype::float32, Dtype::bfloat16, Dtype::float16}) {
        std::vector<float> residual(n), out(n), expected(n);
        for (unsigned step = 0; step < 4; ++step) {
          const std::vector<float> gradient = normals(n, 50 + step);
          for (std::size_t i = 0; i < n; ++i) expected[i] = residual[i] + gradient[i];
          const std::size_t k = topk::kept(n, 0.01);
          topk::decode(encoder.encode(gradient, k, type, residual.data()), n, type, out.data());
          std::size_t off = 0, sent = 0;
          for (std::size_t i = 0; i < n; ++i) {
            off += out[i] + residual[i] == expected[i] ? 0 : 1;
            sent += out[i] != 0 ? 1 : 0;
          }
          CHECK_MESSAGE(off == 0, encoder.name);
          CHECK_MESSAGE(sent == k, encoder.name);
        }
      }
    }
  }
}

TEST_CASE("topk: all encoders give the same bytes, and leave the same") {
  for (const std::size_t n : {129UL, 1000UL}) {
    const auto all = gradients(n);
    for (std::size_t i = 0; i < all.size(); ++i) {
      for (const Dtype type : {Dtype::float32, Dtype::bfloat16, Dtype::float16}) {
        for (const std::size_t k : {std::size_t{1}, (n + 6) / 7, n}) {
          std::vector<float> left[2] = {normals(n, 9), normals(n, 9)};
          const Bytes a = kEncoders[0].encode(all[i], k, type, left[0].data());
          const Bytes b = kEncoders[1].encode(all[i], k, type, left[1].data());
          CHECK_MESSAGE(a == b, "n ", n, " k ", k, " gradient ", i);
          CHECK_MESSAGE(same_bits(left[0], left[1]), "n ", n, " k ", k, " gradient ", i);
        }
      }
    }
  }
}

TEST_CASE("topk: counts that make no sense are refused") {
  CHECK(topk::checked_bytes(100, 7, Dtype::float32, 1000) ==
        topk::encoded_bytes(100, 7, Dtype::float32));
  CHECK_THROWS_AS(topk::checked_bytes(100, 0, Dtype::float32, 1000), Error);
  CHECK_THROWS_AS(topk::checked_bytes(100, 101, Dtype::float32, 1000), Error);
  CHECK_THROWS_AS(topk::checked_bytes(100, 100, Dtype::float32, 603), Error);
}

}  // namespace
}  // namespace smart_infinity
