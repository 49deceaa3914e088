#include <cstdint>
#include <random>
#include <vector>

#include "cache_testing.hpp"

using namespace cache_testing;

TEST_CASE("cache: by frequency a twentieth of the lists is hit 1.3 times as often as by recency") {
  const std::size_t ids = 20'000;
  for (const double exponent : {0.6, 0.75}) {
    Zipf draw(ids, exponent, 9);
    auto random = random_from(1);
    std::vector<TraceAccess> trace;
    trace.reserve(400'000);
    for (int i = 0; i < 400'000; ++i)
      trace.push_back({draw(), static_cast<std::uint32_t>(random() % 60)});
    const auto lfu = simulate_cache(trace, ids / 20, CachePolicy::lfu, {}, 1);
    const auto lru = simulate_cache(trace, ids / 20, CachePolicy::lru, {}, 1);
    CHECK(hit_ratio(lfu) > 1.3 * hit_ratio(lru));
    CHECK(lfu.hits + lfu.misses == trace.size());
    CHECK(lfu.admitted + lfu.rejected == lfu.misses);
    CHECK(lfu.admitted - lfu.evicted == ids / 20);
    CHECK(lru.rejected == 0);
    CHECK(lru.admitted - lru.evicted == ids / 20);
    // Pinning the hottest can only help; pinning the coldest takes their room.
    CHECK(simulate_cache(trace, ids, CachePolicy::lru, {}, 1).evicted == 0);
    CHECK(simulate_cache(trace, 100, CachePolicy::none, {}, 1).hits == 0);
    const NodeId pinned[] = {trace[0].id, trace[1].id};
    CHECK(simulate_cache(trace, 100, CachePolicy::lru, pinned, 1).pinned_hits > 2);
    // The same seed, the same answer.
    CHECK(simulate_cache(trace, ids / 20, CachePolicy::lfu, {}, 1).hits == lfu.hits);
  }
}

TEST_CASE("cache: where a node is met counts: of equally frequent ones the early ones stay") {
  EdgeCache cache(budget_for(500), kDegree, CachePolicy::lfu, 1);
  auto random = random_from(1);
  for (int i = 0; i < 200'000; ++i) {
    const NodeId id = random() % 2000;
    access(cache, id, id < 300 ? 2 : 80);
  }
  std::size_t early = 0;
  for (NodeId id = 0; id < 300; ++id) early += cache.contains(id) ? 1 : 0;
  CHECK(early > 280);
}

TEST_CASE("cache: a burst of cold ids does little harm, and new favourites come in") {
  EdgeCache cache(budget_for(1000), kDegree, CachePolicy::lfu, 1);
  Zipf first(20'000, 0.9, 4), second(20'000, 0.9, 5);
  const auto phase = [&](Zipf& draw, int count) {
    const auto before = cache.counters();
    for (int i = 0; i < count; ++i) access(cache, draw());
    auto after = cache.counters();
    after.hits -= before.hits;
    after.misses -= before.misses;
    return hit_ratio(after);
  };
  phase(first, 100'000);
  const double before = phase(first, 20'000);
  for (NodeId id = 50'000; id < 52'000; ++id) access(cache, id, 20);
  const double after = phase(first, 2000);
  CHECK(after > 0.8 * before);
  phase(second, 60'000);
  CHECK(phase(second, 20'000) > 0.9 * before);
}

TEST_CASE("cache: ids without end share frequencies and stay within the budget") {
  EdgeCache cache(60'000, kDegree, CachePolicy::lfu, 1);
  auto random = random_from(1);
  for (int i = 0; i < 100'000; ++i) {
    access(cache, i % 3 == 0 ? random() % 100 : random() % kNoNode);
    if (cache.memory_bytes() > 60'000) FAIL("over the budget");
  }
  std::size_t hot = 0;
  for (NodeId id = 0; id < 100; ++id) hot += cache.contains(id) ? 1 : 0;
  CHECK(hot > 90);
  access(cache, kNoNode - 1);
}
