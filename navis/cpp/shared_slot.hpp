// A shared_ptr that one thread replaces while others read it. As std::atomic<std::shared_ptr>,
// whose load() in libstdc++ 12 gives its lock back without release order, so that a store may
// overtake the reading of the pointer (and ThreadSanitizer says so).
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace navis {

template <class T>
class SharedSlot {
 public:
  std::shared_ptr<T> load() const {
    const Held held(busy_);
    return value_;
  }
  // What was there goes outside of the lock, which is held for a few instructions only.
  void store(std::shared_ptr<T> value) {
    const Held held(busy_);
    value_.swap(value);
  }

 private:
  struct Held {
    explicit Held(std::atomic_flag& busy) : flag(busy) {
      while (flag.test_and_set(std::memory_order_acquire)) flag.wait(true);
    }
    ~Held() {
      flag.clear(std::memory_order_release);
      flag.notify_one();
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    std::atomic_flag& flag;
  };

  mutable std::atomic_flag busy_;
  std::shared_ptr<T> value_;
};

}  // namespace navis
