#include "planner.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <tuple>

namespace pipe_bd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Calls visit(end, period) for every stage [lo, end) that may run on group size number `size`,
// growing the stage block by block until a block or the memory cap forbids it. Both passes of
// the planner use this one sum, so that their periods compare exactly.
template <typename Visit>
void for_each_stage(const Profile& profile, const PlanOptions& options, std::size_t lo,
                    std::size_t size, Visit visit) {
  const double input = lo == 0 ? 0.0 : profile.link_seconds(lo - 1);
  double work = 0.0;
  double memory = 0.0;
  for (std::size_t block = lo; block < profile.blocks; ++block) {
    if (!profile.available(block, size)) return;
    const std::size_t at = profile.at(block, size);
    work += profile.teacher_s[at] + profile.student_s[at] + profile.allreduce_s[at] +
            profile.update_s[block];
    if (options.memory_cap_bytes) {
      memory += profile.memory_bytes[at];
      // Written so that unmeasured memory (NaN) is refused under a cap.
      if (!(memory <= *options.memory_cap_bytes)) return;
    }
    const double period = work + input;
    visit(block + 1, lo == 0 ? std::max(period, profile.loader_s) : period);
  }
}

// How many entries of `groups` a plan may use.
std::size_t usable_sizes(const Profile& profile, const PlanOptions& options) {
  const int limit = options.largest_group > 0 ? std::min(options.largest_group, options.devices)
                                              : options.devices;
  return static_cast<std::size_t>(
      std::upper_bound(profile.groups.begin(), profile.groups.end(), limit) -
      profile.groups.begin());
}

// Lexicographic goal of the second pass; `end` and `size` make it deterministic.
struct Choice {
  int devices = std::numeric_limits<int>::max();
  int stages = 0;
  std::size_t end = 0;
  std::size_t size = 0;
  bool operator<(const Choice& other) const {
    return std::tie(devices, stages, end, size) <
           std::tie(other.devices, other.stages, other.end, other.size);
  }
};

}  // namespace

PlanResult plan(const Profile& profile, const PlanOptions& options) {
  const std::size_t blocks = profile.blocks;
  const std::size_t sizes = usable_sizes(profile, options);
  const std::size_t width = static_cast<std::size_t>(options.devices) + 1;

  // Pass 1: best[b][n] = lowest period of the first b blocks on at most n devices. The stages
  // that start at lo are pushed forward once best[lo] is final.
  std::vector<double> best((blocks + 1) * width, kInfinity);
  std::fill_n(best.begin(), width, 0.0);
  for (std::size_t lo = 0; lo < blocks; ++lo) {
    const double* from = &best[lo * width];
    for (std::size_t size = 0; size < sizes; ++size) {
      const std::size_t g = static_cast<std::size_t>(profile.groups[size]);
      for_each_stage(profile, options, lo, size, [&](std::size_t end, double period) {
        double* to = &best[end * width];
        for (std::size_t n = g; n < width; ++n) {
          const double slowest = from[n - g] < period ? period : from[n - g];
          to[n] = slowest < to[n] ? slowest : to[n];
        }
      });
    }
  }

  PlanResult result;
  result.period_s = best[blocks * width + width - 1];
  if (result.period_s == kInfinity) {
    std::size_t reached = blocks;
    while (best[reached * width + width - 1] == kInfinity) --reached;
    result.failed_block = static_cast<int>(reached);
    return result;
  }

  // Pass 2: of all plans with that period the one with the fewest devices, then stages. A prefix
  // that is not itself the fastest may use fewer devices, so this cannot be read off pass 1.
  std::vector<Choice> choice(blocks + 1);
  choice[blocks].devices = 0;
  for (std::size_t lo = blocks; lo-- > 0;) {
    for (std::size_t size = 0; size < sizes; ++size) {
      for_each_stage(profile, options, lo, size, [&](std::size_t end, double period) {
        const Choice& rest = choice[end];
        if (period > result.period_s || rest.devices > options.devices) return;
        const Choice candidate{rest.devices + profile.groups[size], rest.stages + 1, end, size};
        if (candidate.devices <= options.devices) choice[lo] = std::min(choice[lo], candidate);
      });
    }
  }
  for (std::size_t lo = 0; lo < blocks; lo = choice[lo].end) {
    result.stages.push_back({static_cast<int>(lo), static_cast<int>(choice[lo].end) - 1,
                             profile.groups[choice[lo].size]});
  }
  return result;
}

}  // namespace pipe_bd
