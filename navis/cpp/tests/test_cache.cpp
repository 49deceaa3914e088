#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "cache_testing.hpp"

using namespace cache_testing;

TEST_CASE("cache: what is offered is found whole, replaced, updated, erased") {
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru}) {
    EdgeCache cache(budget_for(1000), kDegree, policy, 1);
    NodeId out[kDegree];
    NodeId version = 0;
    CHECK(cache.find(7, 0, out) == -1);
    cache.update(7, list_of(7, 1));
    CHECK(!cache.contains(7));
    cache.offer(7, list_of(7, 2));
    CHECK(is_of(out, cache.find(7, 3, out), 7, version));
    CHECK(version == 2);
    cache.offer(7, list_of(7, 3));
    CHECK(is_of(out, cache.peek(7, out), 7, version));
    CHECK(version == 3);
    cache.update(7, list_of(7, 4));
    CHECK(is_of(out, cache.peek(7, out), 7, version));
    CHECK(version == 4);
    cache.offer(8, {});
    CHECK(cache.find(8, 0, out) == 0);
    CHECK(cache.entries() == 2);
    cache.erase(7);
    cache.erase(7);
    CHECK(cache.peek(7, out) == -1);
    CHECK(cache.entries() == 1);
    const auto counters = cache.counters();
    CHECK(counters.hits == 2);
    CHECK(counters.misses == 1);
    CHECK(counters.admitted == 2);
    CHECK(counters.rejected == 0);
    CHECK(counters.evicted == 0);
    const std::vector<NodeId> longer(kDegree + 1);
    CHECK_THROWS_AS(cache.offer(1, longer), Error);
    CHECK_THROWS_AS(cache.update(1, longer), Error);
    CHECK_THROWS_AS(cache.pin(1, longer), Error);
  }
}

TEST_CASE("cache: an offer that is no longer current is not kept") {
  EdgeCache cache(budget_for(100), kDegree, CachePolicy::lfu, 1);
  cache.offer(1, list_of(1, 0), [] { return false; });
  CHECK(!cache.contains(1));
  cache.offer(1, list_of(1, 1), [] { return true; });
  cache.offer(1, list_of(1, 0), [] { return false; });
  NodeId out[kDegree];
  NodeId version = 0;
  CHECK(is_of(out, cache.peek(1, out), 1, version));
  CHECK(version == 1);
}

TEST_CASE("cache: nothing is rejected or evicted while everything fits") {
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru}) {
    for (const std::size_t entries : {1U, 5U, 100U, 1000U, 40'000U}) {
      EdgeCache cache(budget_for(entries), kDegree, policy, 3);
      // Any ids, not only such as spread evenly over the shards.
      Zipf draw(entries * 2, 0.3, entries);
      std::vector<NodeId> ids;
      std::vector<bool> seen(entries * 2);
      while (ids.size() < entries) {
        const NodeId id = draw();
        if (!seen[id]) ids.push_back(id);
        seen[id] = true;
        if (ids.size() + 2 > cache.capacity() * 9 / 10) break;
      }
      for (int round = 0; round < 3; ++round) {
        for (const NodeId id : ids) CHECK(access(cache, id) == (round > 0));
      }
      CHECK(cache.entries() == ids.size());
      CHECK(cache.counters().rejected == 0);
      CHECK(cache.counters().evicted == 0);
    }
  }
}

TEST_CASE("cache: the memory is what is counted, and never above the budget") {
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru, CachePolicy::none}) {
    for (const std::size_t budget : {0U, 100U, 1000U, 3000U, 10'000U, 100'000U, 3'000'000U}) {
      EdgeCache cache(budget, kDegree, policy, 3);
      CHECK(cache.memory_bytes() <= budget);
      auto random = random_from(7);
      const NodeId ids = 50'000;
      for (int i = 0; i < 200'000; ++i) {
        const NodeId id = static_cast<NodeId>(random() % (random() % ids + 1));
        if (i % 50 == 0) cache.erase(id);
        if (i % 70 == 0) cache.pin(id, list_of(id, 0));
        if (i % 60 == 0) cache.unpin(random() % ids);
        access(cache, id, random() % 50);
        if (i % 1000 == 0) {
          if (cache.memory_bytes() > budget || cache.entries() > cache.capacity()) {
            FAIL("over the budget of ", budget);
          }
          // Entries alone take this much.
          if (cache.memory_bytes() < cache.entries() * 4 * kDegree) FAIL("miscounted");
        }
      }
      // Of a budget that is not tiny most goes to entries: 50 000 ids have 50 000 bytes.
      if (budget >= 100'000 && policy != CachePolicy::none) {
        CHECK(cache.entries() == cache.capacity());
        CHECK(static_cast<double>(cache.capacity() * 4 * kDegree) >
              (budget > 100'000 ? 0.8 : 0.6) * static_cast<double>(budget));
        CHECK(static_cast<double>(cache.memory_bytes()) > 0.98 * static_cast<double>(budget));
      }
    }
  }
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("cache: the allocator agrees") {
  const auto allocated = [] {
    const struct mallinfo2 info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const std::size_t slack = 8192;  // the allocator's own: pages, and what it keeps of freed bytes
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru}) {
    for (const std::size_t budget : {50'000U, 1'000'000U, 20'000'000U}) {
      const std::size_t before = allocated();
      EdgeCache cache(budget, kDegree, policy, 3);
      for (NodeId id = 0; id < 300'000; ++id) access(cache, id * 7 % 300'000);
      const std::size_t taken = allocated() - before;
      CHECK(taken <= budget + slack);
      CHECK(taken + slack >= budget - budget / 50);
      CHECK(cache.memory_bytes() <= taken + slack);
      CHECK(cache.memory_bytes() + slack + budget / 50 >= taken);
    }
  }
}
#endif

TEST_CASE("cache: none holds nothing") {
  EdgeCache cache(1U << 20U, kDegree, CachePolicy::none, 1);
  for (NodeId id = 0; id < 100; ++id) CHECK(!access(cache, id % 10));
  CHECK(!cache.pin(1, list_of(1, 0)));
  CHECK(!cache.contains(1));
  CHECK(cache.entries() == 0);
  CHECK(cache.capacity() == 0);
  CHECK(cache.memory_bytes() == 0);
  CHECK(cache.counters().misses == 100);
}

TEST_CASE("cache: lru is exact within a shard") {
  // Small enough for one shard.
  EdgeCache cache(budget_for(50), kDegree, CachePolicy::lru, 1);
  const auto fit = static_cast<NodeId>(cache.capacity());
  REQUIRE(fit >= 40);
  std::vector<NodeId> order;  // oldest first
  auto random = random_from(5);
  for (int i = 0; i < 20'000; ++i) {
    const auto id = static_cast<NodeId>(random() % (std::uint64_t{2} * fit));
    const auto at = std::find(order.begin(), order.end(), id);
    if (access(cache, id) != (at != order.end())) FAIL("step ", i);
    if (at != order.end()) order.erase(at);
    if (order.size() == fit) order.erase(order.begin());
    order.push_back(id);
    if (i % 100 == 99) {
      cache.erase(order[3]);
      order.erase(order.begin() + 3);
    }
  }
}

TEST_CASE("cache: the pinned never leave, and give way only when unpinned") {
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru}) {
    EdgeCache cache(budget_for(3000), kDegree, policy, 2);
    for (NodeId id = 0; id < 300; ++id) CHECK(cache.pin(id * 64, list_of(id * 64, 1)));
    Zipf draw(30'000, 0.5, 1);
    for (int i = 0; i < 100'000; ++i) access(cache, draw());
    NodeId out[kDegree];
    NodeId version = 0;
    const auto before = cache.counters();
    for (NodeId id = 0; id < 300; ++id) {
      CHECK(is_of(out, cache.find(id * 64, 0, out), id * 64, version));
      CHECK(version == 1);
    }
    CHECK(cache.counters().pinned_hits == before.pinned_hits + 300);
    CHECK(cache.counters().hits == before.hits + 300);
    cache.update(64, list_of(64, 2));
    CHECK(is_of(out, cache.peek(64, out), 64, version));
    CHECK(version == 2);

    // Pinned until the budget is full of them, whatever their shards; then no more, and nothing
    // new.
    NodeId id = 1;
    while (cache.pin(id * 64, list_of(id * 64, 1))) ++id;
    CHECK(cache.entries() == cache.capacity());
    CHECK(id == cache.entries());
    CHECK(!cache.pin(1, list_of(1, 0)));
    cache.offer(1, list_of(1, 0));
    CHECK(!cache.contains(1));
    cache.unpin(64);
    CHECK(cache.pin(1, list_of(1, 0)));
    CHECK(!cache.contains(64));
    cache.erase(1);
    cache.offer(3, list_of(3, 0));
    CHECK(cache.contains(3));
  }
}

TEST_CASE("cache: record sees every find") {
  EdgeCache cache(budget_for(100), kDegree, CachePolicy::lru, 1);
  std::vector<TraceAccess> seen;
  cache.record([&](NodeId id, std::size_t depth) {
    seen.push_back({id, static_cast<std::uint32_t>(depth)});
  });
  for (NodeId id = 0; id < 10; ++id) access(cache, id % 4, id);
  NodeId out[kDegree];
  cache.peek(1, out);
  CHECK(seen.size() == 10);
  CHECK(seen[9].id == 1);
  CHECK(seen[9].depth == 9);
}

TEST_CASE("cache: threads that find, offer, update, pin and erase see whole lists only") {
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru}) {
    for (const std::size_t entries : {60U, 4000U}) {
      EdgeCache cache(budget_for(entries), kDegree, policy, 1);
      const auto ids = static_cast<NodeId>(entries * 3);
      const std::size_t budget = budget_for(entries);
      // The newest version that update() has returned for, so that none older may be found: offers
      // carry the version read before, and are asked whether it still is the newest.
      std::vector<std::atomic<NodeId>> versions(ids);
      std::atomic<int> wrong = 0;
      std::vector<std::thread> threads;
      threads.reserve(4);
      for (unsigned t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
          auto random = random_from(t);
          NodeId out[kDegree];
          for (int i = 0; i < 20'000; ++i) {
            const NodeId id = static_cast<NodeId>(random() % (random() % ids + 1));
            const NodeId newest = versions[id].load();
            const auto act = random() % 100;
            NodeId version = 0;
            if (act < 10 && id % 4 == t) {  // each id has one who changes it
              versions[id].store(newest + 1);
              cache.update(id, list_of(id, newest + 1));
              const int length = cache.peek(id, out);
              if (length >= 0 && (!is_of(out, length, id, version) || version != newest + 1))
                ++wrong;
            } else if (act < 12) {
              cache.erase(id);
            } else if (act < 13 && id % 4 == t) {
              cache.pin(id, list_of(id, newest));
            } else if (act < 15) {
              cache.unpin(id);
            } else {
              const int length = cache.find(id, act, out);
              if (length >= 0 && !is_of(out, length, id, version)) ++wrong;
              if (length < 0) {
                cache.offer(id, list_of(id, newest), [&] { return versions[id] == newest; });
              }
            }
            if (i % 500 == 0 && cache.memory_bytes() > budget) ++wrong;
          }
        });
      }
      for (auto& thread : threads) thread.join();
      CHECK(wrong == 0);
      CHECK(cache.entries() <= cache.capacity());
      std::size_t found = 0;
      NodeId out[kDegree];
      for (NodeId id = 0; id < ids; ++id) {
        const int length = cache.peek(id, out);
        if (length < 0) continue;
        NodeId version = 0;
        CHECK(is_of(out, length, id, version));
        CHECK(version == versions[id].load());
        ++found;
      }
      CHECK(found == cache.entries());
    }
  }
}

TEST_CASE("cache: shrinking gives memory back, keeps the hot and the pinned, and whole lists") {
  for (const auto policy : {CachePolicy::lfu, CachePolicy::lru}) {
    constexpr std::size_t kBudget = 1U << 20U;
    EdgeCache cache(kBudget, kDegree, policy, 1);
    CHECK(cache.limit_bytes() <= kBudget);
    const auto ids = static_cast<NodeId>(2 * cache.capacity());
    for (NodeId id = 0; id < 40; ++id) REQUIRE(cache.pin(id, list_of(id, 1)));
    for (int round = 0; round < 6; ++round) {
      for (NodeId id = 100; id < 400; ++id) access(cache, id);  // hot
      for (NodeId id = 400 + round; id < ids; id += 6) access(cache, id);
    }
    const std::size_t before = cache.memory_bytes();
    for (int step = 0; step < 3; ++step) {
      const std::size_t limit = cache.limit_bytes();
      cache.shrink(kBudget / 4);
      CHECK(cache.limit_bytes() <= limit - kBudget / 4);
      CHECK(cache.memory_bytes() <= cache.limit_bytes());
      CHECK(cache.entries() <= cache.capacity());
    }
    CHECK(cache.memory_bytes() < before / 3);
    NodeId out[kDegree], version = 0;
    for (NodeId id = 0; id < 40; ++id) {
      const int length = cache.peek(id, out);
      REQUIRE(length > 0);
      CHECK((is_of(out, length, id, version) && version == 1));
    }
    if (policy == CachePolicy::lfu) {
      int hot = 0;
      for (NodeId id = 100; id < 400; ++id) hot += cache.contains(id) ? 1 : 0;
      CHECK(hot >= 250);
    }
    for (NodeId id = 400; id < ids; ++id) access(cache, id);  // goes on as before
    CHECK(cache.memory_bytes() <= cache.limit_bytes());
    cache.shrink(2 * kBudget);
    CHECK(cache.entries() == 0);
    CHECK(!cache.pin(1, list_of(1, 1)));
    access(cache, 7);
    CHECK(!cache.contains(7));
  }
}

TEST_CASE("cache: shrinking beside other threads' calls") {
  EdgeCache cache(4U << 20U, kDegree, CachePolicy::lfu, 1);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      auto random = random_from(t);
      while (!stop) {
        const NodeId id = random() % 60'000;
        access(cache, id);
        if (id % 7 == 0) cache.erase(id);
      }
    });
  }
  for (int step = 0; step < 14; ++step) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    cache.shrink(256U << 10U);
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  CHECK(cache.memory_bytes() <= cache.limit_bytes());
  CHECK(cache.limit_bytes() <= 512U << 10U);
}
