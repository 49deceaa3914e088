#include <doctest/doctest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "../io_budget.hpp"

using namespace navis;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

}  // namespace

TEST_CASE("io budget: never more than rate times time, and a burst") {
  constexpr std::uint64_t kRate = 64U << 20U;
  IoBudget budget(kRate);
  const auto begun = Clock::now();
  std::vector<std::thread> writers;
  for (int i = 0; i < 3; ++i) {
    writers.emplace_back([&] {
      for (int request = 0; request < 32; ++request) budget.take(IoBudget::kPortion);
    });
  }
  for (auto& writer : writers) writer.join();
  const double bytes = 3.0 * 32 * IoBudget::kPortion;
  CHECK(budget.taken() == static_cast<std::uint64_t>(bytes));
  // Sleeping too long is the machine's to do; too short would be ours.
  CHECK(seconds_since(begun) >= (bytes - 2.0 * IoBudget::kPortion) / kRate * 0.99);
  CHECK(budget.waited_s() > 0);
}

TEST_CASE("io budget: without a rate nobody waits; a request beyond the burst is let through") {
  IoBudget unlimited(0);
  unlimited.take(std::uint64_t{1} << 40U);
  CHECK(unlimited.waited_s() == 0);
  IoBudget small(1U << 20U);
  small.take(1U << 18U);
  CHECK(small.taken() == 1U << 18U);
}
