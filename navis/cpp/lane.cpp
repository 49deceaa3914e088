#include "lane.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace navis {

namespace {

shorthaul::uring::Options ring_options(const Store& store) {
  shorthaul::uring::Options options;
  options.backend = store.session.io;
  return options;
}

[[noreturn]] void fail(const shorthaul::uring::File& file, std::uint64_t offset, bool writing,
                       int error) {
  const std::string where = file.path().string() + ": " + (writing ? "writing" : "reading") +
                            " at byte " + std::to_string(offset) + ": ";
  if (error == ENODATA) {
    throw Error(ErrorKind::corrupt, where + "the file ends early; run navis verify");
  }
  throw Error(kind_of(error), where + std::strerror(error));
}

}  // namespace

Lane::Lane(Store& store)
    : store_(store),
      ring_(ring_options(store)),
      units_(store.format.unit_bytes()),
      vectors_(store.vector_read_bytes()) {
  std::vector<shorthaul::uring::File> files{store.pages};
  if (store.vectors) files.push_back(store.vectors);
  ring_.register_files(files);
}

void Lane::drain() {
  while (ring_.in_flight() > 0) {
    completions_.clear();
    ring_.submit_and_wait(1, completions_);
  }
}

void Lane::run(std::size_t in_flight, const std::function<bool(Traversal&)>& next,
               const std::function<void(Traversal&)>& done) {
  // A traversal has at most a beam of units and a group of vectors in flight.
  in_flight = std::clamp<std::size_t>(in_flight, 1, 8);
  while (traversals_.size() < in_flight) {
    traversals_.push_back(std::make_unique<Traversal>(store_, units_, vectors_));
    traversals_.back()->slot = traversals_.size() - 1;
  }
  std::vector<std::size_t> outstanding(in_flight, 0);
  std::size_t active = 0;

  // Takes a traversal as far as it goes without waiting; a finished one makes room for the next.
  auto drive = [&](Traversal& t) {
    while (!t.advance()) {
      outstanding[t.slot] = t.requests().size();
      for (std::size_t i = 0; i < t.requests().size(); ++i) {
        const ReadRequest& r = t.requests()[i];
        ring_.read(*r.file, r.offset, {r.into, r.bytes}, i * in_flight + t.slot);
      }
      return;
    }
    done(t);
    t.release();
    --active;
  };
  auto fill = [&](Traversal& t) {
    while (outstanding[t.slot] == 0 && next(t)) {
      ++active;
      drive(t);
    }
  };
  try {
    for (std::size_t i = 0; i < in_flight; ++i) fill(*traversals_[i]);
    while (active > 0) {
      completions_.clear();
      ring_.submit_and_wait(1, completions_);
      for (const auto& c : completions_) {
        Traversal& t = *traversals_[c.tag % in_flight];
        if (c.error) {
          const ReadRequest& failed = t.requests()[c.tag / in_flight];
          fail(*failed.file, failed.offset, false, c.error);
        }
        if (--outstanding[t.slot] == 0) {
          drive(t);
          fill(t);
        }
      }
    }
  } catch (...) {
    drain();
    for (const auto& t : traversals_) t->release();
    throw;
  }
}

void Lane::read(const std::vector<ReadRequest>& requests) {
  std::size_t sent = 0, finished = 0;
  while (finished < requests.size()) {
    for (; sent < requests.size() && ring_.in_flight() < ring_.depth(); ++sent) {
      const ReadRequest& r = requests[sent];
      ring_.read(*r.file, r.offset, {r.into, r.bytes}, sent);
    }
    completions_.clear();
    ring_.submit_and_wait(1, completions_);
    finished += completions_.size();
    for (const auto& c : completions_) {
      if (!c.error) continue;
      const ReadRequest r = requests[c.tag];
      const int error = c.error;
      drain();
      fail(*r.file, r.offset, false, error);
    }
  }
}

void Lane::write(const std::vector<WriteRequest>& requests) {
  std::size_t sent = 0, finished = 0;
  while (finished < requests.size()) {
    for (; sent < requests.size() && ring_.in_flight() < ring_.depth(); ++sent) {
      const WriteRequest& w = requests[sent];
      store_.budget.take(w.bytes.size());
      ring_.write(*w.file, w.offset, w.bytes, sent);
    }
    completions_.clear();
    ring_.submit_and_wait(1, completions_);
    finished += completions_.size();
    for (const auto& c : completions_) {
      if (!c.error) continue;
      const WriteRequest w = requests[c.tag];
      const int error = c.error;
      drain();
      fail(*w.file, w.offset, true, error);
    }
  }
}

}  // namespace navis
