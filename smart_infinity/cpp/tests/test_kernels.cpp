#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "../half.hpp"
#include "../kernels.hpp"
#include "helpers.hpp"

namespace smart_infinity {
namespace {

Settings settings_of(Kind kind) {
  Settings s;
  s.lr = 1e-2;
  s.weight_decay = 0.01;
  s.momentum = kind == Kind::sgd ? 0.9 : 0;
  return s;
}

struct Arrays {
  std::vector<float> p, m, v;
  bool operator==(const Arrays& other) const {
    auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return same(p, other.p) && same(m, other.m) && same(v, other.v);
  }
};

TEST_CASE("kernels: the same bits at every level, and however the arrays are cut") {
  const std::size_t n = 1003;
  for (const Kind kind : {Kind::adamw, Kind::adam, Kind::adagrad, Kind::sgd}) {
    for (const auto recipe : {kernels::Recipe::whole, kernels::Recipe::rest}) {
      std::vector<Arrays> found;
      at_every_level([&] {
        for (const std::size_t cut : {n, std::size_t{1}, std::size_t{7}, std::size_t{64}}) {
          Arrays a{normals(n, 1), std::vector<float>(n), std::vector<float>(n)};
          for (unsigned step = 1; step <= 5; ++step) {
            const std::vector<float> g = normals(n, 10 + step, 1e-3F);
            const Hyper h = hyper(kind, settings_of(kind), step, 0.5F, 0.25F);
            for (std::size_t at = 0; at < n; at += cut) {
              const std::size_t count = std::min(cut, n - at);
              kernels::update(kind, h, recipe, count, &a.p[at], &g[at], &a.m[at], &a.v[at]);
            }
          }
          found.push_back(a);
        }
      });
      for (const Arrays& a : found) CHECK(a == found.front());
      CHECK(found.front().p != normals(n, 1));
    }
  }
}

TEST_CASE("kernels: Adam's step is the formula's, in double") {
  const Hyper h = hyper(Kind::adamw, settings_of(Kind::adamw), 3, 1, 1);
  float p = 0.7F, m = 0.1F, v = 0.04F;
  const float g = -0.3F;
  double pd = p, md = m, vd = v;
  kernels::update(Kind::adamw, h, kernels::Recipe::whole, 1, &p, &g, &m, &v);
  pd *= 1 - 1e-2 * 0.01;
  md = 0.9 * md + 0.1 * g;
  vd = 0.999 * vd + 0.001 * g * g;
  const double mean = md / (1 - std::pow(0.9, 3)), spread = vd / (1 - std::pow(0.999, 3));
  pd -= 1e-2 * mean / (std::sqrt(spread) + 1e-8);
  CHECK(p == doctest::Approx(pd));
  CHECK(m == doctest::Approx(md));
  CHECK(v == doctest::Approx(vd));
}

TEST_CASE("kernels: all 65536 halves there and back, the same bits at every level") {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  at_every_level([&] {
    for (const Dtype type : {Dtype::bfloat16, Dtype::float16}) {
      std::vector<float> floats(65536 + 3);
      std::vector<std::uint16_t> back(65536);
      // At an odd place too: eight at a time and the last ones by themselves.
      for (const std::size_t shift : {0, 3}) {
        const std::size_t n = 65536 - shift;
        kernels::to_float(type, halves.data() + shift, n, floats.data());
        kernels::from_float(type, floats.data(), n, back.data());
        std::size_t off = 0;
        for (std::size_t i = 0; i < n; ++i) {
          const std::uint16_t half = halves[i + shift];
          const float value = type == Dtype::bfloat16 ? bf16_to_float(half) : f16_to_float(half);
          off += std::bit_cast<std::uint32_t>(value) == std::bit_cast<std::uint32_t>(floats[i]) ||
                         std::isnan(value)
                     ? 0
                     : 1;
          off += std::isnan(value) || back[i] == half ? 0 : 1;
        }
        CHECK(off == 0);
      }
    }
  });
}

TEST_CASE("kernels: floats are rounded to nearest, ties to even, at every level") {
  std::mt19937 random(3);
  std::vector<float> values(20000);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (i % 3 == 0) {  // ties, and one beside them
      const std::uint32_t half = static_cast<std::uint32_t>(random()) << 16U;
      values[i] = std::bit_cast<float>(half | (0x8000U + static_cast<std::uint32_t>(i % 2)));
    }
    if (i % 7 == 0)
      values[i] = std::ldexp(1.0F + static_cast<float>(i % 2048) / 2048, -14 - i % 12);
  }
  for (const Dtype type : {Dtype::bfloat16, Dtype::float16}) {
    std::vector<std::vector<std::uint16_t>> found;
    at_every_level([&] {
      std::vector<std::uint16_t> out(values.size());
      kernels::from_float(type, values.data(), values.size(), out.data());
      found.push_back(out);
    });
    for (const auto& one : found) CHECK(one == found.front());
    std::size_t off = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      const auto back = [&](std::uint16_t half) {
        return static_cast<double>(type == Dtype::bfloat16 ? bf16_to_float(half)
                                                           : f16_to_float(half));
      };
      const std::uint16_t half = found.front()[i];
      const double error = std::abs(back(half) - static_cast<double>(values[i]));
      if (std::isinf(back(half))) continue;
      for (const int step : {-1, 1}) {  // no neighbour is nearer
        const auto other = static_cast<std::uint16_t>(half + step);
        const double theirs = std::abs(back(other) - static_cast<double>(values[i]));
        off += theirs < error || (theirs == error && error > 0 && half % 2 != 0) ? 1 : 0;
      }
    }
    CHECK(off == 0);
  }
}

TEST_CASE("kernels: finite") {
  at_every_level([&] {
    for (const std::size_t n : {1, 7, 8, 9, 100}) {
      std::vector<float> values(n, 1.0F);
      CHECK(kernels::finite(values.data(), n));
      for (std::size_t at = 0; at < n; ++at) {
        for (const float bad :
             {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
              std::numeric_limits<float>::quiet_NaN()}) {
          values[at] = bad;
          CHECK(!kernels::finite(values.data(), n));
          values[at] = std::numeric_limits<float>::max();
        }
      }
    }
  });
}

TEST_CASE("kernels: settings that make no sense are refused") {
  const auto refused = [](auto change) {
    Settings s;
    change(s);
    try {
      hyper(Kind::adam, s, 1, 1, 1);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::bad_input;
    }
    return false;
  };
  CHECK(refused([](Settings& s) { s.lr = -1; }));
  CHECK(refused([](Settings& s) { s.lr = std::nan(""); }));
  CHECK(refused([](Settings& s) { s.beta1 = 1; }));
  CHECK(refused([](Settings& s) { s.beta2 = -0.1; }));
  CHECK(refused([](Settings& s) { s.nesterov = true; }));
  CHECK_THROWS_AS(hyper(Kind::adam, Settings{}, 0, 1, 1), Error);
}

}  // namespace
}  // namespace smart_infinity
