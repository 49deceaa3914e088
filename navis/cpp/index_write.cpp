// Making an index: graph, order on disk, files, first checkpoint.
#include <unistd.h>

#include <algorithm>
#include <random>

#include "bytes.hpp"
#include "index.hpp"
#include "index_detail.hpp"
#include "packing.hpp"
#include "posix_file.hpp"
#include "section_file.hpp"

namespace navis {

namespace {

// The order of nodes on disk. Selective: lists that will be read one after the other share a page,
// and so do their vectors. Packed: as given, like the systems it stands for.
std::vector<std::size_t> disk_order(const IndexOptions& options, const PageFormat& format,
                                    const Graph& graph, NodeId medoid) {
  std::vector<std::size_t> order(graph.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (options.layout == Layout::packed || graph.size() == 0) return order;
  return pack_pages(graph.size(), format.per_unit(), medoid,
                    [&](std::size_t i) { return graph.of(i); });
}

// Appends whole blocks to a file through one large buffer.
class Appender {
 public:
  Appender(const std::filesystem::path& path, bool direct)
      : file_(shorthaul::uring::File::open(path, shorthaul::uring::File::Mode::create, direct)) {}
  // Room for `bytes` more, to be filled at once.
  std::span<std::byte> next(std::size_t bytes) {
    if (used_ + bytes > buffer_.size()) flush();
    if (bytes > buffer_.size()) buffer_ = shorthaul::uring::Buffer(bytes);
    used_ += bytes;
    return buffer_.span(used_ - bytes, bytes);
  }
  void finish() {
    flush();
    file_.sync();
  }

 private:
  void flush() {
    if (used_ == 0) return;
    try {
      file_.write_at(written_, buffer_.span(0, used_));
    } catch (const std::system_error& error) {
      throw Error(kind_of(error.code().value()), error.what());
    }
    written_ += used_;
    used_ = 0;
  }

  shorthaul::uring::File file_;
  shorthaul::uring::Buffer buffer_{std::size_t{1} << 20U};
  std::size_t used_ = 0;
  std::uint64_t written_ = 0;
};

}  // namespace

void Index::build(const std::filesystem::path& folder, const IndexOptions& options,
                  const BuildData& data, const ProductQuantizer& quantizer,
                  const BuildOptions& build_options, const Progress& progress) {
  const WorkingSpace space(options.dim, options.type, options.metric, options.radius);
  const std::size_t dim = space.dim();
  Graph graph;
  NodeId middle = kNoNode;
  {
    std::vector<float> working(data.n * dim);
    for (std::size_t i = 0; i < data.n; ++i) {
      space.stored(data.raw + i * space.raw_bytes(), working.data() + i * dim);
    }
    graph = build_vamana(working.data(), data.n, dim, build_options, progress);
    if (data.n) middle = medoid(working.data(), data.n, dim);
  }
  write(
      folder, options, graph, [&](std::size_t i) { return data.raw + i * space.raw_bytes(); },
      data.ids, quantizer, middle, build_options.seed, data.attributes);
}

void Index::write(const std::filesystem::path& folder, const IndexOptions& options,
                  const Graph& graph, const std::function<const std::byte*(std::size_t)>& stored,
                  const std::uint64_t* ids, const ProductQuantizer& quantizer, NodeId medoid,
                  std::uint64_t seed, const AttributeRows& attributes) {
  const std::size_t n = graph.size();
  attributes.check(n);
  Store s(folder, options, OpenOptions{.write_rate = 0});
  if (quantizer.dim() != s.space.dim()) {
    throw Error(ErrorKind::bad_input, "the quantizer is for " + std::to_string(quantizer.dim()) +
                                          " dimensions, the index has " +
                                          std::to_string(s.space.dim()));
  }
  std::filesystem::create_directories(folder / "wal");
  auto quantized = std::make_shared<Quantized>(quantizer);
  quantized->codes.grow(n);
  s.grow(n);
  std::vector<std::size_t> order = disk_order(options, s.format, graph, medoid);
  if (!s.packed()) {
    group_nearest(order, s.format.per_unit(), s.vectors_per_page(), s.space.dim(),
                  [&](std::size_t i, float* to) { s.space.stored(stored(i), to); });
  }
  std::vector<NodeId> place(n);
  for (std::size_t i = 0; i < n; ++i) place[order[i]] = static_cast<NodeId>(i);

  const std::size_t raw_bytes = s.space.raw_bytes(), per_unit = s.format.per_unit();
  std::vector<float> working(s.space.dim());
  for (std::size_t i = 0; i < n; ++i) {
    const std::byte* raw = stored(order[i]);
    s.space.stored(raw, working.data());
    quantizer.encode(working.data(), quantized->codes.row(i));
    s.external[i] = ids ? ids[order[i]] : order[i];
    s.checksum[i] = crc32c(0, raw, raw_bytes);
    s.attributes.set(static_cast<NodeId>(i), attributes.labels_of(order[i]),
                     attributes.value_of(order[i]));
    s.state[i] = NodeState::live;
    s.location[i] = static_cast<std::uint32_t>(i);
  }
  {
    Appender pages(folder / (s.packed() ? "records.dat" : "edges.dat"), true);
    std::vector<NodeId> list;
    for (std::size_t first = 0; first < n; first += per_unit) {
      PageWriter page(s.format, pages.next(s.format.unit_bytes()));
      for (std::size_t i = first; i < std::min(n, first + per_unit); ++i) {
        list.clear();
        for (const NodeId to : graph.of(order[i])) list.push_back(place[to]);
        page.add(static_cast<NodeId>(i), s.packed() ? stored(order[i]) : nullptr, raw_bytes, list);
      }
      page.finish(static_cast<std::uint32_t>(first / per_unit), 0);
    }
    pages.finish();
  }
  if (!s.packed()) {
    Appender vectors(folder / "vectors.dat", true);
    const std::size_t per_page = s.vectors_per_page(), bytes = s.vector_read_bytes();
    for (std::size_t first = 0; first < n; first += per_page) {
      const auto page = vectors.next(bytes);
      std::memset(page.data(), 0, page.size());
      for (std::size_t i = first; i < std::min(n, first + per_page); ++i) {
        std::memcpy(page.data() + (i - first) * raw_bytes, stored(order[i]), raw_bytes);
      }
    }
    vectors.finish();
  }
  s.quantize(quantized);
  s.rows = static_cast<std::uint32_t>(n);
  s.medoid = n ? place[medoid] : kNoNode;
  const auto wanted =
      static_cast<std::size_t>(options.entrance_share * static_cast<float>(n) + 0.5F);
  if (wanted > 0) {
    std::vector<NodeId> sample(n);
    for (std::size_t i = 0; i < n; ++i) sample[i] = static_cast<NodeId>(i);
    std::mt19937_64 random(seed);
    std::shuffle(sample.begin(), sample.end(), random);
    sample.resize(wanted);
    s.entrance.build(*quantized, sample, seed);
  }
  std::mutex alone;
  save_state(s, quantized, 1, alone, nullptr);
  // The folder's own name, and those of folders that may have been made for it.
  for (auto at = std::filesystem::absolute(folder); at.has_relative_path(); at = at.parent_path()) {
    if (::access(at.parent_path().c_str(), R_OK) != 0) break;  // so not made by us
    posix::sync_folder(at.parent_path());
  }
}

}  // namespace navis
