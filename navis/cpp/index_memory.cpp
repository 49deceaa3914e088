// The memory budget: what must be there, and the cache, which has the rest.
#include <algorithm>

#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

namespace {

constexpr NodeId kLookEvery = 1024;  // vectors inserted between two looks at what they take

std::string megabytes(std::uint64_t bytes) {
  return std::to_string((bytes + (1U << 20U) - 1) >> 20U) + " MiB";
}

}  // namespace

// Bytes of tables and codes, of two threads' buffers, and of what waits to be written.
Index::Needed Index::needed_memory() const {
  const Store& s = *store_;
  Needed needed;
  needed.tables = s.table_bytes() + s.attributes.memory_bytes() +
                  s.quantized()->codes.memory_bytes() + s.entrance.memory_bytes() +
                  std::uint64_t{s.rows} * 8;
  // Traversals hold the pages of a position seeking.
  needed.buffers = std::uint64_t{2} * s.session.in_flight * (s.options.insert_list + 8) *
                       s.format.unit_bytes() / 2 +
                   (std::uint64_t{2} << 20U) + 2 * pending_bytes_;
  return needed;
}

void Index::plan_memory() {
  Store& s = *store_;
  const std::size_t entry_bytes =
      160 + 4 * s.options.degree + (s.packed() ? s.space.raw_bytes() : 0);
  const std::uint64_t budget = s.session.memory_budget;
  pending_bytes_ = s.session.pending_bytes;
  if (pending_bytes_ == 0) {
    pending_bytes_ =
        budget ? std::clamp<std::uint64_t>(budget / 16, 64 * entry_bytes, 8U << 20U) : 2U << 20U;
  }
  pending_limit_ = std::max<std::size_t>(64, pending_bytes_ / entry_bytes);
  const Needed needed = needed_memory();
  if (budget && budget < needed.sum()) {
    throw Error(ErrorKind::bad_input,
                "a memory budget of " + megabytes(budget) + " is too small for this index: give " +
                    megabytes(needed.sum()) + " (tables and codes " + megabytes(needed.tables) +
                    ", buffers " + megabytes(needed.buffers) + ") or more");
  }
  checkpoint_bytes_ = s.session.checkpoint_bytes
                          ? s.session.checkpoint_bytes
                          : std::max<std::uint64_t>(64U << 20U, state_bytes_ / 2);
  planned_rows_ = s.rows.load();
  if (!s.packed() && s.session.cache != CachePolicy::none) {
    const std::uint64_t all = (std::uint64_t{s.rows} * 5 / 4 + 65536) * (4 * s.options.degree + 24);
    const std::uint64_t rest = budget ? std::min(budget - needed.sum(), all) : all;
    s.cache = std::make_unique<EdgeCache>(rest, s.options.degree, s.session.cache, 1);
  }
}

// Called by writers after a change: what tables and codes have grown by, the cache gives up.
void Index::keep_within_budget() {
  Store& s = *store_;
  const std::uint64_t budget = s.session.memory_budget;
  if (!budget || s.rows.load(std::memory_order_relaxed) < planned_rows_ + kLookEvery) return;
  std::unique_lock one(plan_, std::try_to_lock);
  if (!one) return;
  std::uint64_t needed;
  {
    std::lock_guard lock(commit_);
    planned_rows_ = s.rows.load();
    needed = needed_memory().sum();
  }
  const std::uint64_t cached = s.cache ? s.cache->limit_bytes() : 0;
  if (s.cache && needed + cached > budget) {
    s.cache->shrink(needed + cached - budget + budget / 64);  // not again at once
  }
  // Chunks of tables are some hundred KiB each.
  outgrown_ = needed > budget + budget / 16;
}

void Index::require_budget() {
  if (!outgrown_) return;
  std::lock_guard lock(commit_);
  throw Error(ErrorKind::bad_input,
              "the index has outgrown its memory budget of " +
                  megabytes(store_->session.memory_budget) + ": open it with " +
                  megabytes(needed_memory().sum() * 5 / 4) + " or more to insert into it");
}

// Fills the cache before the first search: with every list if all fit, in one sweep of the file,
// and otherwise with the entrance nodes', which never leave.
void Index::warm() {
  std::call_once(warmed_, [this] {
    Store& s = *store_;
    if (!s.cache || s.rows == 0) return;
    const auto guard = s.epochs.enter_guard();
    const std::size_t unit_bytes = s.format.unit_bytes();
    std::vector<std::pair<std::uint32_t, NodeId>> wanted;  // location, node
    const bool all = s.cache->capacity() >= s.rows;
    const std::vector<NodeId> entrance = [&] {
      std::lock_guard lock(commit_);
      return s.entrance.ids();
    }();
    if (all) {
      for (NodeId id = 0; id < s.rows; ++id) wanted.emplace_back(s.location[id].load(), id);
    } else if (entrance.size() * 2 < s.cache->capacity()) {
      for (const NodeId id : entrance) wanted.emplace_back(s.location[id].load(), id);
    }
    std::erase_if(wanted, [](const auto& w) { return w.first >= kPendingLoc; });
    std::sort(wanted.begin(), wanted.end());
    auto lease = lane();
    constexpr std::size_t kBatch = 256;
    shorthaul::uring::Buffer buffer(kBatch * unit_bytes);
    for (std::size_t first = 0; first < wanted.size();) {
      std::vector<std::uint32_t> units;
      std::size_t last = first;
      for (; last < wanted.size(); ++last) {
        const std::uint32_t unit = s.unit_of(wanted[last].first);
        if (!units.empty() && units.back() == unit) continue;
        if (units.size() == kBatch) break;
        units.push_back(unit);
      }
      std::vector<ReadRequest> reads;  // neighbouring units as one request
      for (std::size_t u = 0; u < units.size(); ++u) {
        if (u > 0 && units[u] == units[u - 1] + 1) {
          reads.back().bytes += unit_bytes;
        } else {
          reads.push_back({&s.pages, s.unit_offset(units[u]), unit_bytes,
                           buffer.span(u * unit_bytes, unit_bytes).data()});
        }
      }
      lease->read(reads);
      std::size_t u = 0;
      for (; first < last; ++first) {
        const auto [at, id] = wanted[first];
        while (units[u] != s.unit_of(at)) ++u;
        const PageView page(s.format, buffer.data() + u * unit_bytes);
        // A damaged page is reported by whoever needs it.
        if (!page.fault(units[u]).empty() || page.id(s.slot_of(at)) != id) continue;
        const auto list = page.list(s.slot_of(at));
        const auto current = [&s, id = id, at = at] { return s.location[id].load() == at; };
        if (all) {
          s.cache->offer(id, list, current);
        } else {
          std::lock_guard lock(commit_);
          if (current()) s.cache->pin(id, list);
        }
      }
    }
  });
}

}  // namespace navis
