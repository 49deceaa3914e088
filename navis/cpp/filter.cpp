#include "filter.hpp"

#include <algorithm>

namespace navis {

namespace {

// Nanoseconds on the machine this was measured on; what matters is their ratio. Looking at a code
// of n bytes in a scan and at a neighbour's in a walk, telling whether a node matches, and
// following an edge list, the reads that are left after sharing and caching included.
constexpr double code_cost(std::size_t bytes) { return 2 + static_cast<double>(bytes); }
constexpr double kCheckCost = 4, kStepCost = 5000;
// A walk in vain may be followed by a scan that costs this many times as much.
constexpr double kRescan = 16;
constexpr std::size_t kSample = 1024;

}  // namespace

FilterPlan::FilterPlan(const Store& store, const Filter& filter, const SearchOptions& options,
                       std::size_t queries)
    : store_(store), filter_(filter), method_(options.filter_method), queries_(queries) {
  estimate();
  choose(options);
}

bool FilterPlan::passes(NodeId node) const {
  const Attributes& attributes = store_.attributes;
  if (filter_.between) {
    const double value = attributes.value(node);
    if (!(value >= filter_.between->first && value <= filter_.between->second)) return false;
  }
  if (!filter_.names_labels()) return true;
  const Attributes::Set set = attributes.labels(node);
  const auto has = [labels = set.span()](std::uint32_t label) {
    return std::binary_search(labels.begin(), labels.end(), label);
  };
  return (filter_.any_of.empty() ||
          std::any_of(filter_.any_of.begin(), filter_.any_of.end(), has)) &&
         std::all_of(filter_.all_of.begin(), filter_.all_of.end(), has) &&
         std::none_of(filter_.none_of.begin(), filter_.none_of.end(), has);
}

// From the counts of labels where they tell it, else from a sample of nodes; the counts bound it.
void FilterPlan::estimate() {
  const LabelNodes& by_label = store_.attributes.by_label();
  const std::size_t live = store_.live.load(std::memory_order_relaxed);
  std::size_t most = live;
  for (const std::uint32_t label : filter_.all_of) most = std::min(most, by_label.count(label));
  if (!filter_.any_of.empty()) {
    std::size_t sum = 0;
    for (const std::uint32_t label : filter_.any_of) sum += by_label.count(label);
    most = std::min(most, sum);
  }
  expected_ = most;
  const bool told = filter_.any_of.size() + filter_.all_of.size() <= 1 && filter_.none_of.empty() &&
                    !filter_.between;
  if (told || most == 0) return;
  const auto guard = store_.epochs.enter_guard();
  const std::size_t rows = store_.rows.load(std::memory_order_acquire);
  std::size_t looked = 0, matching = 0;
  for (std::size_t i = 0; i < std::min(kSample, rows); ++i) {
    const auto node = static_cast<NodeId>(i * rows / std::min(kSample, rows));
    if (!store_.is_live(node)) continue;
    ++looked;
    matching += matches(node);
  }
  // Of none in the sample there may still be one in the index.
  const double share = (static_cast<double>(matching) + 0.5) / (static_cast<double>(looked) + 1);
  expected_ = std::min(most, static_cast<std::size_t>(share * static_cast<double>(live)) + 1);
}

// The nodes of the labels without which nothing matches, where they are few enough to be listed.
bool FilterPlan::listed(std::vector<NodeId>& out) const {
  const LabelNodes& by_label = store_.attributes.by_label();
  if (!filter_.all_of.empty()) {
    const auto rarest = *std::min_element(
        filter_.all_of.begin(), filter_.all_of.end(),
        [&](std::uint32_t a, std::uint32_t b) { return by_label.count(a) < by_label.count(b); });
    return by_label.nodes(rarest, out);
  }
  if (filter_.any_of.empty()) return false;
  for (const std::uint32_t label : filter_.any_of) {
    if (!by_label.nodes(label, out)) return false;
  }
  if (filter_.any_of.size() > 1) {
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
  }
  return true;
}

const std::vector<NodeId>& FilterPlan::nodes() const {
  std::call_once(once_, [&] {
    const auto guard = store_.epochs.enter_guard();
    std::vector<NodeId> found;
    if (listed(found)) {
      std::erase_if(found, [&](NodeId node) { return !matches(node); });
    } else {
      found.clear();
      const NodeId rows = store_.rows.load(std::memory_order_acquire);
      for (NodeId node = 0; node < rows; ++node) {
        if (matches(node)) found.push_back(node);
      }
    }
    nodes_ = std::move(found);
  });
  return nodes_;
}

void FilterPlan::choose(const SearchOptions& options) {
  // Deleted nodes are walked through as well.
  const double rows = std::max(1.0, static_cast<double>(store_.rows.load()));
  const double share = std::clamp(static_cast<double>(expected_) / rows, 1 / rows, 1.0);
  const double list = std::max(options.k, options.list);
  const double around = std::max(list / 2, 2.0 * options.k) * (1 - share) / share;
  others_ = 16 + static_cast<std::size_t>(std::min(around, rows));

  const std::size_t bytes = store_.quantized()->pq.subspaces();
  const double step = kStepCost + store_.options.degree * code_cost(bytes);
  const double walk = (list + static_cast<double>(others_)) * step;
  const double scan = static_cast<double>(expected_) * code_cost(bytes) +
                      rows * kCheckCost / static_cast<double>(queries_);
  if (method_ == FilterMethod::automatic) {
    method_ = scan <= walk ? FilterMethod::scan : FilterMethod::walk;
  }
  rescans_ = scan <= walk * kRescan;
}

}  // namespace navis
