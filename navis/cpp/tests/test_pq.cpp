#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../kernels.hpp"
#include "../pq.hpp"
#include "../types.hpp"

namespace navis {
namespace {

std::vector<float> normals(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

std::size_t width_of(std::size_t dim, std::size_t subspaces) {
  return (dim + subspaces - 1) / subspaces;
}

// In double, with zeros past the vector's end.
double part_distance(const ProductQuantizer& pq, const float* vector, std::size_t m,
                     std::size_t centroid) {
  double sum = 0;
  for (std::size_t j = 0; j < pq.width(); ++j) {
    const std::size_t at = m * pq.width() + j;
    const double value = at < pq.dim() ? vector[at] : 0.0;
    const double difference = value - pq.codebooks()[(m * 256 + centroid) * pq.width() + j];
    sum += difference * difference;
  }
  return sum;
}

template <class Check>
void at_every_level(Check&& check) {
  const kernels::Level before = kernels::active();
  for (kernels::Level level : {kernels::Level::generic, kernels::Level::avx2}) {
    if (!kernels::supported(level)) continue;
    kernels::use(level);
    check();
  }
  kernels::use(before);
}

TEST_CASE("pq: codes, tables and decoded vectors are those of the definition") {
  struct Shape {
    std::size_t dim, subspaces;
  };
  for (const Shape shape : {Shape{8, 1}, Shape{8, 8}, Shape{16, 4}, Shape{10, 4}, Shape{10, 7},
                            Shape{129, 16}, Shape{768, 96}, Shape{768, 154}, Shape{1536, 256},
                            Shape{70, 10}, Shape{120, 10}, Shape{160, 10}}) {
    CAPTURE(shape.dim);
    CAPTURE(shape.subspaces);
    const std::size_t width = width_of(shape.dim, shape.subspaces);
    const ProductQuantizer pq(shape.dim, shape.subspaces,
                              normals(shape.subspaces * 256 * width, 1));
    CHECK(pq.width() == width);
    at_every_level([&] {
      const std::vector<float> vectors = normals(5 * shape.dim, 2);
      for (std::size_t i = 0; i < 5; ++i) {
        const float* vector = vectors.data() + i * shape.dim;
        std::vector<std::uint8_t> code(shape.subspaces);
        std::vector<float> table(shape.subspaces * 256);
        std::vector<float> decoded(shape.dim);
        pq.encode(vector, code.data());
        pq.table(vector, table.data());
        pq.decode(code.data(), decoded.data());
        std::size_t off = 0;
        for (std::size_t m = 0; m < shape.subspaces; ++m) {
          for (std::size_t c = 0; c < 256; ++c) {
            const double expected = part_distance(pq, vector, m, c);
            off += std::abs(table[m * 256 + c] - expected) <= 2e-6 * expected ? 0 : 1;
            // The least, and among equals the first.
            const float chosen = table[m * 256 + code[m]];
            off += c < code[m] ? (table[m * 256 + c] <= chosen) : (table[m * 256 + c] < chosen);
          }
        }
        for (std::size_t d = 0; d < shape.dim; ++d) {
          const std::size_t m = d / width;
          off += decoded[d] == pq.codebooks()[(m * 256 + code[m]) * width + d % width] ? 0 : 1;
        }
        CHECK(off == 0);
      }
    });
  }
}

TEST_CASE("pq: a decoded vector has its own code, and adc its distance") {
  const std::size_t dim = 96, subspaces = 12;
  const ProductQuantizer pq(dim, subspaces, normals(subspaces * 256 * 8, 3));
  const std::vector<float> query = normals(dim, 4);
  std::mt19937 random(5);
  at_every_level([&] {
    std::vector<float> table(subspaces * 256);
    pq.table(query.data(), table.data());
    for (int round = 0; round < 20; ++round) {
      std::vector<std::uint8_t> code(subspaces), again(subspaces);
      for (std::uint8_t& byte : code) byte = static_cast<std::uint8_t>(random());
      std::vector<float> decoded(dim);
      pq.decode(code.data(), decoded.data());
      pq.encode(decoded.data(), again.data());
      CHECK(again == code);
      const std::uint8_t* row = code.data();
      float distance = 0;
      kernels::adc(table.data(), subspaces, &row, 1, &distance);
      CHECK(distance == doctest::Approx(kernels::l2(query.data(), decoded.data(), dim)));
    }
  });
}

TEST_CASE("pq: a code from the vector's table is the vector's code") {
  const std::size_t dim = 70, subspaces = 12;
  const ProductQuantizer pq(dim, subspaces, normals(subspaces * 256 * 6, 6));
  at_every_level([&] {
    for (unsigned seed = 0; seed < 20; ++seed) {
      const std::vector<float> vector = normals(dim, 100 + seed);
      std::vector<float> table(subspaces * 256);
      pq.table(vector.data(), table.data());
      std::vector<std::uint8_t> code(subspaces), again(subspaces);
      pq.encode(vector.data(), code.data());
      pq.encode_from_table(table.data(), again.data());
      CHECK(again == code);
    }
  });
}

// Decoded rows and vectors of random codes, and how far their distances are apart at most, as a
// share of the distance.
double worst_row_distance(const ProductQuantizer& pq, std::size_t count) {
  std::mt19937 random(7);
  std::vector<float> vectors(count * pq.dim());
  std::vector<std::byte> rows(count * pq.row_bytes());
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<std::uint8_t> code(pq.subspaces());
    for (std::uint8_t& byte : code) byte = static_cast<std::uint8_t>(random());
    pq.decode(code.data(), vectors.data() + i * pq.dim());
    pq.row(code.data(), rows.data() + i * pq.row_bytes());
  }
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::byte* row = rows.data() + i * pq.row_bytes();
    CHECK(pq.row_distance(row, row) == 0);
    for (std::size_t j = 0; j < i; ++j) {
      const double exact =
          kernels::l2(vectors.data() + i * pq.dim(), vectors.data() + j * pq.dim(), pq.dim());
      const double found = pq.row_distance(row, rows.data() + j * pq.row_bytes());
      worst = std::max(worst, std::abs(found - exact) / exact);
    }
  }
  return worst;
}

TEST_CASE("pq: distances between rows are those between decoded vectors, up to 7 bits") {
  for (const std::size_t width : {1, 3, 4, 5, 6, 8, 11, 20}) {
    CAPTURE(width);
    const std::size_t subspaces = 33, dim = subspaces * width;
    const ProductQuantizer pq(dim, subspaces, normals(subspaces * 256 * width, 8));
    CHECK(pq.row_bytes() % kernels::kRowBytes == 0);
    CHECK(pq.row_bytes() != dim * sizeof(float));  // of 7-bit numbers
    at_every_level([&] { CHECK(worst_row_distance(pq, 30) < 0.03); });
  }
}

TEST_CASE("pq: a vector as a row is as far from codes' rows as it is from what they decode to") {
  for (const bool wide : {false, true}) {
    const std::size_t subspaces = 33, width = 6, dim = subspaces * width - 2;
    std::vector<float> books = normals(subspaces * 256 * width, 12);
    if (wide) books[0] = 1e6F;
    const ProductQuantizer pq(dim, subspaces, books);
    REQUIRE((pq.row_bytes() == dim * sizeof(float)) == wide);
    at_every_level([&] {
      for (unsigned seed = 0; seed < 20; ++seed) {
        const std::vector<float> vector = normals(dim, 200 + seed);
        std::vector<std::uint8_t> code(subspaces, static_cast<std::uint8_t>(seed + 1));
        std::vector<float> decoded(dim);
        std::vector<std::byte> row(pq.row_bytes()), own(pq.row_bytes());
        pq.decode(code.data(), decoded.data());
        pq.row(code.data(), row.data());
        pq.row_of(vector.data(), own.data());
        const float exact = kernels::l2(vector.data(), decoded.data(), dim);
        const float tolerance = wide ? 0.0F : 0.03F * exact;
        CHECK(std::abs(pq.row_distance(own.data(), row.data()) - exact) <= tolerance);
      }
      // What no centroid is near is cut off, not wrapped around.
      const std::vector<float> far(dim, 1e9F), farther(dim, -1e9F);
      std::vector<std::byte> a(pq.row_bytes()), b(pq.row_bytes());
      pq.row_of(far.data(), a.data());
      pq.row_of(farther.data(), b.data());
      CHECK(pq.row_distance(a.data(), b.data()) > 100);
    });
  }
}

TEST_CASE("pq: where a few entries swallow the rest, rows are floats") {
  const std::size_t subspaces = 24, width = 4, dim = subspaces * width;
  std::vector<float> books = normals(subspaces * 256 * width, 9);
  for (std::size_t c = 0; c < 256; ++c) books[c * width] *= 1000;
  const ProductQuantizer pq(dim, subspaces, books);
  CHECK(pq.row_bytes() == dim * sizeof(float));
  at_every_level([&] { CHECK(worst_row_distance(pq, 30) == 0); });
  // And where all centroids are the same.
  const ProductQuantizer same(dim, subspaces, std::vector<float>(subspaces * 256 * width, 0.5F));
  std::vector<std::byte> row(same.row_bytes());
  same.row(std::vector<std::uint8_t>(subspaces, 3).data(), row.data());
  CHECK(same.row_distance(row.data(), row.data()) == 0);
}

TEST_CASE("pq: the lowest of equal centroids") {
  const ProductQuantizer same(4, 2, std::vector<float>(2 * 256 * 2, 0.5F));
  const std::vector<float> vector{1, 2, 3, 4};
  at_every_level([&] {
    std::vector<std::uint8_t> code(2, 99);
    same.encode(vector.data(), code.data());
    CHECK(code == std::vector<std::uint8_t>{0, 0});
  });
}

TEST_CASE("pq: sizes that do not fit and values that are not finite are refused") {
  const auto kind = [](std::size_t dim, std::size_t subspaces, std::vector<float> books) {
    try {
      const ProductQuantizer pq(dim, subspaces, std::move(books));
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::closed;
  };
  CHECK(kind(0, 1, {}) == ErrorKind::bad_input);
  CHECK(kind(8, 0, {}) == ErrorKind::bad_input);
  CHECK(kind(8, 9, std::vector<float>(9 * 256)) == ErrorKind::bad_input);
  CHECK(kind(8, 2, std::vector<float>(2 * 256 * 4 - 1)) == ErrorKind::bad_input);
  CHECK(kind(8, 2, std::vector<float>(2 * 256 * 4)) == ErrorKind::closed);
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> books(2 * 256 * 4);
    books[1000] = bad;
    CHECK(kind(8, 2, books) == ErrorKind::bad_input);
  }
}

}  // namespace
}  // namespace navis
