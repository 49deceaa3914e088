#include <doctest/doctest.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "helpers.hpp"
#include "simulator.hpp"

namespace pipe_bd {
namespace {

using testing::ideal;
using testing::one_block_each;

SimulationOptions steps(int count, int depth = 2, double jitter = 0.0) {
  SimulationOptions options;
  options.steps = count;
  options.depth = depth;
  options.jitter = jitter;
  return options;
}

double busy(const DeviceTime& time) {
  return time.teacher_s + time.student_s + time.allreduce_s + time.update_s;
}

TEST_CASE("one device does one step after another") {
  const Profile profile = ideal({1, 2}, {3, 4}, 1, 0.5);
  const SimulationResult result = simulate_relay(profile, {{0, 1, 1}}, false, 1, steps(10));
  CHECK(result.period_s == doctest::Approx(11.0));
  CHECK(result.total_s == doctest::Approx(110.0));
  CHECK(busy(result.devices[0]) == doctest::Approx(110.0));
  CHECK(result.bytes_per_step == 0.0);
}

TEST_CASE("dpu settles at the slowest stage") {
  const Profile profile = ideal({1, 2, 1}, {2, 5, 3}, 1, 0.25);
  const SimulationResult result = simulate_relay(profile, one_block_each(3), false, 3, steps(50));
  CHECK(result.period_s == doctest::Approx(2 + 5 + 0.25));
  CHECK(result.fill_s == doctest::Approx(1 + 2));
}

TEST_CASE("tr pays the fill of the pipeline on every step") {
  Profile profile = ideal({1, 2, 1}, {2, 5, 3}, 1, 0.25);
  profile.latency_s = 0.5;
  // max_k(sum_{j<k}(tau_j + c_j) + tau_k + sigma_k) + max u
  const double expected = std::max({1.0 + 2.0, 1.5 + 2.0 + 5.0, 1.5 + 2.5 + 1.0 + 3.0}) + 0.25;
  const SimulationResult result = simulate_relay(profile, one_block_each(3), true, 3, steps(50));
  CHECK(result.period_s == doctest::Approx(expected));
}

TEST_CASE("the ratio of tr to dpu is 1 + alpha (N - 1)") {
  for (const int n : {2, 4, 8, 16}) {
    const auto count = static_cast<std::size_t>(n);
    const Profile profile = ideal(std::vector<double>(count, 1.0), std::vector<double>(count, 2.0));
    const double tr = simulate_relay(profile, one_block_each(count), true, n, steps(60)).period_s;
    const double dpu = simulate_relay(profile, one_block_each(count), false, n, steps(60)).period_s;
    CHECK(tr / dpu == doctest::Approx(1.0 + (n - 1) / 3.0));
  }
}

TEST_CASE("a slow consumer holds its producers back") {
  const Profile profile = ideal({1, 10}, {1, 20});
  for (const int depth : {1, 2, 4}) {
    const SimulationResult result =
        simulate_relay(profile, one_block_each(2), false, 2, steps(40, depth));
    CHECK(result.period_s == doctest::Approx(30.0));
    CHECK(result.peak_unsent == depth);
    CHECK(result.peak_queue == 2 * depth);
  }
}

TEST_CASE("a slow link sets the period") {
  Profile profile = ideal({1, 1}, {1, 1});
  profile.activation_bytes = {100.0, 100.0};
  profile.bytes_per_s = 10.0;
  profile.latency_s = 0.5;
  const SimulationResult result = simulate_relay(profile, one_block_each(2), false, 2, steps(60));
  CHECK(result.period_s == doctest::Approx(10.5));
  CHECK(result.bytes_per_step == 100.0);
}

TEST_CASE("the loader works ahead, or in line without prefetch") {
  Profile profile = ideal({1}, {2});
  profile.loader_s = 2.5;
  SimulationOptions options = steps(40);
  CHECK(simulate_relay(profile, {{0, 0, 1}}, false, 1, options).period_s == doctest::Approx(3.0));
  options.prefetch = 0;
  CHECK(simulate_relay(profile, {{0, 0, 1}}, false, 1, options).period_s == doctest::Approx(5.5));
  profile.loader_s = 7.0;
  options.prefetch = 1;
  CHECK(simulate_relay(profile, {{0, 0, 1}}, false, 1, options).period_s == doctest::Approx(7.0));
}

TEST_CASE("dp reruns the teacher for every block") {
  Profile profile = ideal({1, 2, 3}, {4, 5, 6}, 2, 0.5);
  profile.loader_s = 1.0;
  for (std::size_t block = 0; block < 3; ++block) profile.allreduce_s[profile.at(block, 1)] = 0.1;
  SimulationOptions options = steps(20);
  options.prefetch = 0;
  const SimulationResult result = simulate_dp(profile, 2, options);
  const double teacher = (1 + 3 + 6) / 2.0;
  const double student = (4 + 5 + 6) / 2.0;
  CHECK(result.period_s == doctest::Approx(3 * 1.0 + teacher + student + 3 * 0.1 + 3 * 0.5));
  CHECK(result.devices.size() == 2);
  CHECK(result.devices[1].teacher_s == doctest::Approx(20 * teacher));
}

TEST_CASE("ls is as slow as its fullest device") {
  const Profile profile = ideal({1, 1, 1}, {2, 2, 2});
  const SimulationResult result = simulate_ls(profile, {{2}, {0, 1}, {}}, steps(20));
  CHECK(result.period_s == doctest::Approx((1 + 2) + (2 + 2)));
  CHECK(busy(result.devices[0]) == doctest::Approx(20 * (3 + 2)));
  CHECK(busy(result.devices[2]) == 0.0);
}

TEST_CASE("bin packing takes the longest first") {
  using Bins = std::vector<std::vector<int>>;
  CHECK(bin_pack({3, 4, 5, 6}, 2) == Bins{{0, 3}, {1, 2}});
  CHECK(bin_pack({1, 1}, 3) == Bins{{0}, {1}, {}});
}

TEST_CASE("devices that the stages leave over are idle") {
  const SimulationResult result = simulate_relay(ideal({1}, {1}), {{0, 0, 1}}, false, 4, steps(3));
  REQUIRE(result.devices.size() == 4);
  CHECK(busy(result.devices[3]) == 0.0);
}

TEST_CASE("a group waits for its slowest member") {
  const Profile profile = ideal({1}, {2}, 4);
  const double calm = simulate_relay(profile, {{0, 0, 4}}, false, 4, steps(400)).period_s;
  const double rough = simulate_relay(profile, {{0, 0, 4}}, false, 4, steps(400, 2, 0.3)).period_s;
  CHECK(calm == doctest::Approx(0.75));
  CHECK(rough > 1.05 * calm);
  CHECK(rough < 1.3 * calm);
}

TEST_CASE("draws come from the samples") {
  Profile profile = ideal({1}, {0});
  profile.teacher_samples = {{0, 2}, {1.0, 3.0}};
  profile.student_samples = {{0, 0}, {}};
  profile.update_samples = {{0, 0}, {}};
  const SimulationResult result = simulate_relay(profile, {{0, 0, 1}}, false, 1, steps(2000));
  CHECK(result.total_s / 2000 == doctest::Approx(2.0).epsilon(0.05));
  CHECK(simulate_relay(profile, {{0, 0, 1}}, false, 1, steps(2000)).total_s == result.total_s);
}

TEST_CASE("more depth is never slower") {
  const Profile profile = ideal({1, 2, 1, 1.5}, {2, 1, 3, 1.5}, 1, 0.1);
  double before = 1e300;
  for (int depth = 1; depth <= 8; depth *= 2) {
    const double total =
        simulate_relay(profile, one_block_each(4), false, 4, steps(300, depth, 0.3)).total_s;
    CHECK(total <= before);
    before = total;
  }
}

TEST_CASE("a size that the profile lacks is refused") {
  Profile profile = ideal({1, 1}, {1, 1}, 2);
  testing::forbid(profile, 1, 1);
  CHECK_THROWS_AS(simulate_relay(profile, {{0, 1, 2}}, false, 2, steps(1)), std::invalid_argument);
  CHECK_THROWS_AS(simulate_dp(profile, 3, steps(1)), std::invalid_argument);
}

}  // namespace
}  // namespace pipe_bd
