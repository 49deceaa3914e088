// Vectors of the selective layout: into their places in vectors.dat, and to other places.
#include <algorithm>
#include <cstring>

#include "index.hpp"
#include "index_detail.hpp"

namespace navis {

namespace {

constexpr std::size_t kBatchBytes = 1024 * 1024;  // pages held at once

}  // namespace

// Writes vectors to their slots, ascending; `fill(i, to)` gives the i-th. A page that also holds
// others is read first. Under the flush lock: two who write one page would undo each other.
void Index::write_vectors(Lane& lane, std::span<const std::uint32_t> slots,
                          const std::function<void(std::size_t, std::byte*)>& fill) {
  Store& s = *store_;
  const std::size_t per_page = s.vectors_per_page(), bytes = s.vector_read_bytes();
  const std::size_t batch = std::max<std::size_t>(1, kBatchBytes / bytes);
  shorthaul::uring::Buffer buffer(std::min(batch, slots.size()) * bytes);
  const std::uint64_t file_bytes = s.vectors.size();
  for (std::size_t next = 0; next < slots.size();) {
    const std::size_t begin = next;
    std::vector<std::uint64_t> pages;
    std::vector<ReadRequest> reads;
    std::vector<Lane::WriteRequest> writes;
    while (next < slots.size()) {
      const std::uint64_t page = slots[next] / per_page;
      if (pages.size() == batch) break;
      const std::size_t first = next;
      while (next < slots.size() && slots[next] / per_page == page) ++next;
      const auto whole = buffer.span(pages.size() * bytes, bytes);
      std::memset(whole.data(), 0, bytes);
      if (next - first < per_page && (page + 1) * bytes <= file_bytes) {
        reads.push_back({&s.vectors, page * bytes, bytes, whole.data()});
      }
      if (!pages.empty() && page == pages.back() + 1 &&
          writes.back().bytes.size() + bytes <= IoBudget::kPortion) {
        writes.back().bytes = {writes.back().bytes.data(), writes.back().bytes.size() + bytes};
      } else {
        writes.push_back({&s.vectors, page * bytes, whole});
      }
      pages.push_back(page);
    }
    lane.read(reads);
    s.counters.flush_reads.fetch_add(reads.size(), std::memory_order_relaxed);
    for (std::size_t i = begin, p = 0; i < next; ++i) {
      while (pages[p] != slots[i] / per_page) ++p;
      fill(i, buffer.data() + p * bytes + slots[i] % per_page * s.space.raw_bytes());
    }
    lane.write(writes);
    s.counters.flush_vector_writes.fetch_add(writes.size(), std::memory_order_relaxed);
    s.counters.flush_vector_pages.fetch_add(pages.size() * bytes / kPageBytes,
                                            std::memory_order_relaxed);
  }
}

// Writes new vectors to places of their own. Without `all` those that would not fill a page wait.
void Index::flush_vectors(Lane& lane, bool all) {
  Store& s = *store_;
  if (s.packed()) return;
  std::vector<NodeId> ids = s.fresh.ids();
  std::sort(ids.begin(), ids.end());
  if (!all) ids.resize(ids.size() / s.vectors_per_page() * s.vectors_per_page());
  if (ids.empty()) return;
  const std::vector<std::uint32_t> slots = s.slots.allocate(ids.size());
  try {
    write_vectors(lane, slots, [&](std::size_t i, std::byte* to) {
      s.fresh.find(ids[i], [&](const std::vector<std::byte>& raw) {
        std::memcpy(to, raw.data(), raw.size());
      });
    });
  } catch (...) {
    s.slots.cancel(slots);
    throw;
  }
  // The place first: who no longer finds it in memory looks there.
  for (std::size_t i = 0; i < ids.size(); ++i) {
    s.vector_slot[ids[i]].store(slots[i], std::memory_order_release);
    s.fresh.erase(ids[i]);
  }
}

// Copies vectors to free slots below `limit`, as far as there are any; gives how many. Nothing is
// logged: the slots they leave stay as they are until a checkpoint names the new ones.
std::size_t Index::move_vectors(Lane& lane, std::vector<NodeId> nodes, std::size_t limit) {
  Store& s = *store_;
  const std::size_t bytes = s.vector_read_bytes(), raw_bytes = s.space.raw_bytes();
  std::lock_guard flush(flush_);  // nodes are not freed meanwhile, and pages not written
  std::erase_if(nodes, [&](NodeId id) {
    const std::uint32_t slot = s.vector_slot[id];
    return slot == kNoSlot || slot < limit;
  });
  std::sort(nodes.begin(), nodes.end(),
            [&](NodeId a, NodeId b) { return s.vector_slot[a] < s.vector_slot[b]; });
  const std::vector<std::uint32_t> slots = s.slots.allocate_below(nodes.size(), limit);
  nodes.resize(slots.size());
  if (nodes.empty()) return 0;
  shorthaul::uring::Buffer buffer(nodes.size() * bytes);
  std::vector<ReadRequest> reads;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const VectorPlace place = s.vector_place(nodes[i]);
    reads.push_back({&s.vectors, place.offset, place.bytes, buffer.data() + i * bytes});
  }
  try {
    lane.read(reads);
    s.counters.flush_reads.fetch_add(reads.size(), std::memory_order_relaxed);
    // A damaged one is copied as it is: its checksum goes on telling.
    write_vectors(lane, slots, [&](std::size_t i, std::byte* to) {
      std::memcpy(to, buffer.data() + i * bytes + s.vector_place(nodes[i]).skip, raw_bytes);
    });
  } catch (...) {
    s.slots.cancel(slots);
    throw;
  }
  std::vector<std::uint32_t> left;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    left.push_back(s.vector_slot[nodes[i]].exchange(slots[i], std::memory_order_acq_rel));
  }
  s.slots.release(std::move(left));
  return nodes.size();
}

}  // namespace navis
