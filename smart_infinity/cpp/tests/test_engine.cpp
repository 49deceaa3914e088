#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <thread>

#include "../engine.hpp"
#include "helpers.hpp"

namespace smart_infinity {
namespace {

constexpr std::uint32_t kTile = 2048;

Shape shape_of(Moments moments = Moments::float32, std::size_t tiles = 7) {
  Shape shape{Kind::adamw, false, moments, kTile, std::vector<std::uint32_t>(tiles, kTile)};
  shape.elements.back() = 1000;
  return shape;
}

// One parameter over all tiles.
std::vector<std::vector<Segment>> segments_of(const Shape& shape) {
  std::vector<std::vector<Segment>> all;
  std::uint64_t element = 0;
  for (const std::uint32_t n : shape.elements) {
    all.push_back({{0, n, 0, kernels::Recipe::whole, element}});
    element += n;
  }
  return all;
}

StepPlan plan_of(std::uint64_t step) {
  Settings s;
  s.lr = 1e-2;
  return {step, {hyper(Kind::adamw, s, step, 1, 1)}, {0}};
}

// Runs jobs whose memory it holds, and waits for their events.
class Driver {
 public:
  Driver(const std::filesystem::path& folder, EngineOptions options = {})
      : engine(StateFile::open(folder), segments_of(StateFile::open(folder, true).shape()),
               options) {}

  std::size_t tiles() const { return engine.file().shape().elements.size(); }
  std::uint32_t n(std::size_t tile) const { return engine.file().shape().elements[tile]; }

  Event wait() {
    Event event;
    for (;;) {
      REQUIRE(engine.next(event, 20));
      if (event.type != Event::Type::settled) return event;
    }
  }

  // A step on all tiles, whose gradients depend on the step; gives the parameters.
  std::vector<float> step(std::uint64_t number, bool ahead = false) {
    engine.begin(plan_of(number));
    std::vector<std::vector<float>> gradients, outs;
    for (std::size_t t = 0; t < tiles(); ++t) {
      gradients.push_back(normals(n(t), static_cast<unsigned>(100 * number + t), 1e-2F));
      outs.emplace_back(n(t));
    }
    for (std::size_t t = 0; t < tiles(); ++t) {
      Job job;
      job.type = ahead ? Job::Type::land : Job::Type::update;
      job.tile = static_cast<std::uint32_t>(t);
      job.gradient.bytes = std::as_bytes(std::span(gradients[t]));
      job.out = std::as_writable_bytes(std::span(outs[t]));
      engine.submit(job);
    }
    for (std::size_t t = 0; t < tiles(); ++t) CHECK(wait().type == Event::Type::done);
    if (ahead) {
      for (std::size_t t = 0; t < tiles(); ++t) {
        Job job;
        job.type = Job::Type::update_landed;
        job.tile = static_cast<std::uint32_t>(t);
        job.out = std::as_writable_bytes(std::span(outs[t]));
        engine.submit(job);
      }
      for (std::size_t t = 0; t < tiles(); ++t) CHECK(wait().type == Event::Type::done);
    }
    std::vector<float> all;
    for (const auto& out : outs) all.insert(all.end(), out.begin(), out.end());
    return all;
  }

  void commit(std::uint64_t number) {
    engine.prepare(number, "note " + std::to_string(number));
    engine.commit();
  }

  // Everything, as floats.
  std::vector<float> read() {
    std::vector<float> all;
    for (std::size_t t = 0; t < tiles(); ++t) {
      std::vector<float> record(3 * n(t));
      Job job;
      job.type = Job::Type::read;
      job.tile = static_cast<std::uint32_t>(t);
      job.mask = 7;
      job.decoded = true;
      job.out = std::as_writable_bytes(std::span(record));
      engine.submit(job);
      CHECK(wait().type == Event::Type::done);
      all.insert(all.end(), record.begin(), record.end());
    }
    return all;
  }

  Engine engine;
};

void load(Driver& driver) {
  for (std::size_t t = 0; t < driver.tiles(); ++t) {
    const std::vector<float> values = normals(driver.n(t), static_cast<unsigned>(t));
    Job job;
    job.type = Job::Type::write;
    job.tile = static_cast<std::uint32_t>(t);
    job.mask = 1;
    job.decoded = true;
    job.gradient.bytes = std::as_bytes(std::span(values));
    driver.engine.submit(job);
    CHECK(driver.wait().type == Event::Type::done);
  }
  driver.commit(0);
}

std::filesystem::path made(const Folder& folder, const char* name,
                           const Shape& shape = shape_of()) {
  const auto path = folder.path / name;
  StateFile::create(path, shape, "a description", 1000);
  Driver driver(path);
  load(driver);
  return path;
}

TEST_CASE("engine: slots, landing and rates change nothing but time") {
  const Folder folder;
  std::vector<std::vector<float>> found;
  EngineOptions one_slot, on_disk, slow;
  one_slot.slots = 1;
  slow.read_rate = slow.write_rate = 20e6;
  int number = 0;
  for (const auto& [options, ahead] : {std::pair{EngineOptions{}, false},
                                       {one_slot, false},
                                       {EngineOptions{}, true},
                                       {on_disk, true},
                                       {slow, false}}) {
    EngineOptions with = options;
    if (ahead && number == 2) with.landing_bytes = 1U << 20U;
    const auto path = made(folder, std::to_string(number++).c_str());
    Driver driver(path, with);
    std::vector<float> parameters;
    for (std::uint64_t step = 1; step <= 4; ++step) {
      parameters = driver.step(step, ahead);
      driver.commit(step);
    }
    const std::vector<float> all = driver.read();
    CHECK(std::equal(parameters.begin(), parameters.begin() + kTile, all.begin()));
    found.push_back(all);
  }
  for (const auto& one : found) CHECK(one == found.front());
}

TEST_CASE("engine: a slowed device takes its time and sleeps meanwhile") {
  const Folder folder;
  const auto path = made(folder, "slow");
  EngineOptions slow;
  slow.slots = 1;  // jobs wait for the slot while its transfers wait for the rate
  slow.read_rate = 250e3;
  Driver driver(path, slow);
  const auto begin = std::chrono::steady_clock::now();
  const std::clock_t used = std::clock();
  driver.step(1);
  const double cpu_s = static_cast<double>(std::clock() - used) / CLOCKS_PER_SEC;
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
  // Six tiles of three arrays of two pages, and a short one of three pages.
  CHECK(wall.count() >= (6 * 3 * 8192 + 3 * 4096) / slow.read_rate);
  CHECK(cpu_s < wall.count() / 8);
}

TEST_CASE("engine: what is not committed is not there, what is committed is") {
  const Folder folder;
  const auto path = made(folder, "state");
  std::vector<float> second;
  {
    Driver driver(path);
    driver.step(1);
    driver.commit(1);
    driver.step(2);
    driver.commit(2);
    second = driver.read();
    driver.step(3);
    driver.engine.prepare(3, "");
  }
  {
    Driver driver(path);
    CHECK(driver.engine.file().committed().step == 2);
    CHECK(driver.engine.file().committed().note == "note 2");
    CHECK(driver.read() == second);
    driver.step(3);
    driver.engine.abandon();
    CHECK(driver.read() == second);
    driver.step(3);
    driver.commit(3);
    driver.engine.rollback();
    CHECK(driver.read() == second);
    CHECK_THROWS_AS(driver.engine.rollback(), Error);
  }
  CHECK(StateFile::open(path, true).committed().step == 2);
  CHECK(StateFile::open(path, true).verify(StateFile::open(path, true).committed()).empty());
}

TEST_CASE("engine: moments in fewer bits take the steps, and the same whatever the slots") {
  const Folder folder;
  for (const Moments moments : {Moments::bfloat16, Moments::blocks8}) {
    std::vector<std::vector<float>> found;
    for (const unsigned slots : {1U, 8U}) {
      const std::string name = std::to_string(static_cast<int>(moments)) + std::to_string(slots);
      const auto path = made(folder, name.c_str(), shape_of(moments));
      EngineOptions options;
      options.slots = slots;
      Driver driver(path, options);
      for (std::uint64_t step = 1; step <= 5; ++step) {
        driver.step(step);
        driver.commit(step);
      }
      found.push_back(driver.read());
    }
    CHECK(found[0] == found[1]);
  }
}

TEST_CASE("engine: jobs that make no sense fail by themselves") {
  const Folder folder;
  const auto path = made(folder, "state");
  Driver driver(path);
  driver.engine.begin(plan_of(1));
  std::vector<float> gradient(kTile), out(kTile);
  Job job;
  job.gradient.bytes = std::as_bytes(std::span(gradient)).subspan(4);
  job.out = std::as_writable_bytes(std::span(out));
  driver.engine.submit(job);
  Event event = driver.wait();
  CHECK(event.type == Event::Type::failed);
  CHECK(event.error == ErrorKind::bad_input);
  CHECK_THROWS_AS(driver.engine.prepare(1, ""), Error);
  driver.engine.abandon();

  job.type = Job::Type::update_landed;
  driver.engine.submit(job);
  CHECK(driver.wait().error == ErrorKind::protocol);
  driver.engine.abandon();

  job.type = Job::Type::update;
  job.gradient.bytes = std::as_bytes(std::span(gradient));
  driver.engine.submit(job);
  CHECK(driver.wait().type == Event::Type::done);
  driver.engine.submit(job);
  CHECK(driver.wait().error == ErrorKind::protocol);
  driver.engine.abandon();
  job.tile = 99;
  CHECK_THROWS_AS(driver.engine.submit(job), Error);
  driver.step(1);
  driver.commit(1);
}

TEST_CASE("engine: a damaged array is named when it is read, and the state is as it was") {
  const Folder folder;
  const auto path = made(folder, "state");
  std::uint64_t at = 0;
  {
    const StateFile file = StateFile::open(path, true);
    at = file.offset(3, file.committed().table[3].extent, 2) + 12;
  }
  std::fstream(path / StateFile::kName, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(at))
      .put('x');
  Driver driver(path);
  driver.engine.begin(plan_of(1));
  std::vector<float> gradient(kTile), out(kTile);
  Job job;
  job.tile = 3;
  job.gradient.bytes = std::as_bytes(std::span(gradient));
  job.out = std::as_writable_bytes(std::span(out));
  driver.engine.submit(job);
  const Event event = driver.wait();
  CHECK(event.type == Event::Type::failed);
  CHECK(event.error == ErrorKind::corrupt);
  CHECK(event.message.find("second moments") != std::string::npos);
  const StateFile file = StateFile::open(path, true);
  const auto faults = file.verify(file.committed());
  REQUIRE(faults.size() == 1);
  CHECK(faults[0].tile == 3);
  CHECK(faults[0].array == 2);
}

TEST_CASE("engine: landed gradients add up, in memory and on disk") {
  const Folder folder;
  for (const std::uint64_t budget : {std::uint64_t{1} << 20U, std::uint64_t{0}}) {
    const auto path = made(folder, budget > 0 ? "memory" : "disk");
    EngineOptions options;
    options.landing_bytes = budget;
    Driver driver(path, options);
    const std::vector<float> a = normals(kTile, 1), b = normals(kTile, 2);
    Job job;
    job.type = Job::Type::land;
    job.gradient.bytes = std::as_bytes(std::span(a));
    driver.engine.submit(job);
    driver.wait();
    job.gradient.bytes = std::as_bytes(std::span(b));
    job.add = true;
    driver.engine.submit(job);
    driver.wait();
    std::vector<float> out(kTile);
    Job read;
    read.type = Job::Type::read;
    read.mask = 8;
    read.out = std::as_writable_bytes(std::span(out));
    driver.engine.submit(read);
    CHECK(driver.wait().bytes == kTile * sizeof(float));
    for (std::size_t i = 0; i < kTile; ++i) CHECK_MESSAGE(out[i] == a[i] + b[i], i);
    driver.engine.submit(read);  // it was taken
    CHECK(driver.wait().error == ErrorKind::protocol);
    driver.engine.abandon();
  }
}

TEST_CASE("engine: many threads submit at the same time") {
  const Folder folder;
  Shape shape = shape_of(Moments::float32, 40);
  const auto path = folder.path / "state";
  StateFile::create(path, shape, "", 0);
  Driver driver(path);
  driver.engine.begin(plan_of(1));
  std::vector<std::vector<float>> gradients(40, std::vector<float>(kTile, 0.5F));
  std::vector<std::vector<float>> outs(40, std::vector<float>(kTile));
  std::atomic<std::uint32_t> next{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (std::uint32_t t = next++; t < 40; t = next++) {
        Job job;
        job.tile = t;
        job.gradient.bytes =
            std::as_bytes(std::span(gradients[t])).first(driver.n(t) * sizeof(float));
        job.out = std::as_writable_bytes(std::span(outs[t]));
        driver.engine.submit(job);
        (void)driver.engine.counters();
      }
    });
  }
  for (int i = 0; i < 40; ++i) CHECK(driver.wait().type == Event::Type::done);
  for (auto& thread : threads) thread.join();
  driver.engine.prepare(1, "");
  driver.engine.commit();
  CHECK(driver.engine.counters().tiles == 40);
}

}  // namespace
}  // namespace smart_infinity
