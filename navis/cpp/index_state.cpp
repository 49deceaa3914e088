// The checkpoint file state.nav: everything an index holds in memory.
#include <algorithm>
#include <bit>

#include "bytes.hpp"
#include "index.hpp"
#include "index_detail.hpp"
#include "section_file.hpp"

namespace navis {

namespace {

constexpr std::size_t kRows = ChunkedRows<std::uint8_t>::kRows;

// The first section. Fields may be appended; a reader takes what it knows.
struct Meta {
  std::uint32_t version = kStateVersion;
  std::uint32_t dim = 0, degree = 0, insert_list = 0;
  std::uint8_t type = 0, metric = 0, layout = 0, reserved = 0;
  float alpha = 0, radius = 0, entrance_share = 0;
  std::uint32_t rows = 0, medoid = kNoNode, subspaces = 0;
  std::uint64_t begin_lsn = 1;
  float margin = 0.8F;
  std::uint32_t reserved2 = 0;
};

Meta meta_of(const Store& s) {
  Meta meta;
  meta.dim = s.options.dim;
  meta.degree = s.options.degree;
  meta.insert_list = s.options.insert_list;
  meta.type = static_cast<std::uint8_t>(s.options.type);
  meta.metric = static_cast<std::uint8_t>(s.options.metric);
  meta.layout = static_cast<std::uint8_t>(s.options.layout);
  meta.alpha = s.options.alpha;
  meta.radius = s.options.radius;
  meta.entrance_share = s.options.entrance_share;
  meta.margin = s.options.margin;
  return meta;
}

[[noreturn]] void damaged(const std::filesystem::path& file, const std::string& what) {
  throw Error(ErrorKind::corrupt, file.string() + ": " + what);
}

}  // namespace

IndexOptions read_options(const std::filesystem::path& folder) {
  const auto file = folder / "state.nav";
  if (!std::filesystem::exists(file)) {
    if (std::filesystem::exists(folder / "edges.dat") ||
        std::filesystem::exists(folder / "records.dat")) {
      throw Error(ErrorKind::bad_input,
                  folder.string() + " is not a whole index (no state.nav): its building was cut " +
                      "off, or the file is gone; build it anew, or put a snapshot in its place");
    }
    throw Error(ErrorKind::bad_input,
                folder.string() + " is not a navis index (no state.nav); navis build makes one");
  }
  SectionReader reader(file);
  if (!reader.next() || reader.section() != "META" || reader.bytes().size() < sizeof(Meta)) {
    damaged(file, "does not begin with its description");
  }
  Meta meta;
  std::memcpy(&meta, reader.bytes().data(), sizeof meta);
  if (meta.version > kStateVersion) {
    throw Error(ErrorKind::environment, file.string() + ": format " + std::to_string(meta.version) +
                                            " is newer than this navis (" +
                                            std::to_string(kStateVersion) + "); update navis");
  }
  if (meta.type > 3 || meta.metric > 2 || meta.layout > 1 || meta.dim == 0 || meta.degree == 0 ||
      meta.degree > 255) {
    damaged(file, "holds impossible options");
  }
  IndexOptions options;
  options.dim = meta.dim;
  options.type = static_cast<DataType>(meta.type);
  options.metric = static_cast<Metric>(meta.metric);
  options.layout = static_cast<Layout>(meta.layout);
  options.degree = meta.degree;
  options.insert_list = meta.insert_list;
  options.alpha = meta.alpha;
  options.radius = meta.radius;
  options.entrance_share = meta.entrance_share;
  options.margin = meta.margin;
  return options;
}

std::uint64_t save_state(Store& s, const std::shared_ptr<Quantized>& quantized,
                         std::uint64_t begin_lsn, std::mutex& commit, Wal* wal) {
  SectionWriter file(s.folder / "state.nav", [&](std::uint64_t bytes) { s.budget.take(bytes); });
  std::uint32_t rows;
  bool attributed;  // what is given its first attributes behind us is in the log
  {
    std::lock_guard lock(commit);
    rows = s.rows;
    attributed = s.attributes.used();
    Meta meta = meta_of(s);
    meta.rows = rows;
    meta.medoid = s.medoid;
    meta.subspaces = static_cast<std::uint32_t>(quantized->pq.subspaces());
    meta.begin_lsn = begin_lsn;
    file.write("META", std::as_bytes(std::span(&meta, 1)));
    std::vector<NodeId> ids;
    std::vector<std::vector<std::uint32_t>> edges;
    s.entrance.save(ids, edges);
    ByteWriter entrance;
    entrance.put(static_cast<std::uint32_t>(ids.size()));
    for (std::size_t i = 0; i < ids.size(); ++i) entrance.put_list(ids[i], edges[i]);
    file.write("ENTR", entrance.bytes());
  }
  const auto& codebooks = quantized->pq.codebooks();
  file.write("PQCB", std::as_bytes(std::span(codebooks)));
  // Piece by piece, so that writers wait for one piece only: what changes behind us is in the log.
  std::vector<std::uint32_t> location(kRows), checksum(kRows), slot(kRows);
  std::vector<std::uint64_t> external(kRows);
  std::vector<std::uint8_t> state(kRows), codes;
  ByteWriter attributes;
  for (std::uint32_t first = 0; first < rows; first += kRows) {
    const std::uint32_t count = std::min<std::uint32_t>(kRows, rows - first);
    {
      std::lock_guard lock(commit);
      for (std::uint32_t i = 0; i < count; ++i) {
        const NodeId id = first + i;
        location[i] = s.location[id].load(std::memory_order_relaxed);
        if (location[i] == kPendingLoc) {
          location[i] = kNoLoc;
          s.lists.find(id, [&](const PendingEntry& e) { location[i] = e.base_location; });
        }
        external[i] = s.external[id];
        checksum[i] = s.checksum[id];
        if (!s.packed()) slot[i] = s.vector_slot[id].load(std::memory_order_relaxed);
        state[i] = static_cast<std::uint8_t>(s.state[id].load(std::memory_order_relaxed));
      }
      attributes.clear();
      if (attributed) {
        for (std::uint32_t i = 0; i < count; ++i) s.attributes.put(attributes, first + i);
      }
      const std::uint8_t* row = quantized->codes.row(first);
      codes.assign(row, row + std::size_t{count} * quantized->pq.subspaces());
    }
    file.write_values("LOCA", std::span<const std::uint32_t>(location).first(count));
    file.write_values("EXTI", std::span<const std::uint64_t>(external).first(count));
    file.write_values("VCRC", std::span<const std::uint32_t>(checksum).first(count));
    file.write_values("STAT", std::span<const std::uint8_t>(state).first(count));
    if (!s.packed()) file.write_values("VSLT", std::span<const std::uint32_t>(slot).first(count));
    file.write_values("CODE", std::span<const std::uint8_t>(codes));
    if (attributed) file.write("ATTR", attributes.bytes());
  }
  // The state must not name pages, nor show the effect of records, that could still be lost.
  if (wal) wal->flush();
  if (s.pages) s.pages.sync();
  if (s.vectors) s.vectors.sync();
  return file.finish();
}

// Fills the tables from state.nav; gives the LSN from which the log is to be replayed.
std::uint64_t Index::load_state() {
  Store& s = *store_;
  const auto path = s.folder / "state.nav";
  SectionReader file(path);
  Meta meta;
  std::vector<float> codebooks;
  std::vector<std::byte> entrance;
  std::size_t locations = 0, externals = 0, checksums = 0, states = 0, slots = 0, codes = 0;
  std::shared_ptr<Quantized> quantized;
  AttributeStream attributes(s.attributes);
  auto values = [&](auto&& each, std::size_t& at, std::size_t width) {
    const auto bytes = file.bytes();
    if (bytes.size() % width || at + bytes.size() / width > meta.rows) {
      damaged(path, "section " + file.section() + " has a wrong size");
    }
    for (std::size_t i = 0; i < bytes.size(); i += width) each(at++, bytes.data() + i);
  };
  while (file.next()) {
    const std::string section = file.section();
    const auto bytes = file.bytes();
    if (section == "META") {
      std::memcpy(&meta, bytes.data(), std::min(bytes.size(), sizeof meta));
      s.grow(meta.rows);
    } else if (section == "PQCB") {
      const auto* first = reinterpret_cast<const float*>(bytes.data());
      codebooks.resize(codebooks.size() + bytes.size() / sizeof(float));
      std::memcpy(codebooks.data() + codebooks.size() - bytes.size() / sizeof(float), first,
                  bytes.size());
    } else if (section == "ENTR") {
      entrance.insert(entrance.end(), bytes.begin(), bytes.end());
    } else {
      if (!quantized && section == "CODE") {
        quantized = std::make_shared<Quantized>(
            ProductQuantizer(s.space.dim(), meta.subspaces, std::move(codebooks)));
        quantized->codes.grow(meta.rows);
      }
      if (section == "ATTR") {
        attributes.feed(bytes);
      } else if (section == "LOCA") {
        values(
            [&](std::size_t i, const std::byte* b) {
              std::uint32_t v;
              std::memcpy(&v, b, sizeof v);
              s.location[i].store(v, std::memory_order_relaxed);
            },
            locations, 4);
      } else if (section == "EXTI") {
        values([&](std::size_t i, const std::byte* b) { std::memcpy(&s.external[i], b, 8); },
               externals, 8);
      } else if (section == "VCRC") {
        values([&](std::size_t i, const std::byte* b) { std::memcpy(&s.checksum[i], b, 4); },
               checksums, 4);
      } else if (section == "STAT") {
        values(
            [&](std::size_t i, const std::byte* b) {
              s.state[i].store(static_cast<NodeState>(*b), std::memory_order_relaxed);
            },
            states, 1);
      } else if (section == "VSLT") {
        values(
            [&](std::size_t i, const std::byte* b) {
              std::uint32_t v;
              std::memcpy(&v, b, sizeof v);
              s.vector_slot[i].store(v, std::memory_order_relaxed);
            },
            slots, 4);
      } else if (section == "CODE") {
        values([&](std::size_t i,
                   const std::byte* b) { std::memcpy(quantized->codes.row(i), b, meta.subspaces); },
               codes, meta.subspaces);
      }
    }
  }
  if (locations != meta.rows || externals != meta.rows || checksums != meta.rows ||
      states != meta.rows || (meta.rows && codes != meta.rows) || !attributes.whole() ||
      (attributes.rows() && attributes.rows() != meta.rows) ||
      (!s.packed() && slots != meta.rows)) {
    damaged(path, "a section is incomplete");
  }
  if (!quantized) {
    quantized = std::make_shared<Quantized>(
        ProductQuantizer(s.space.dim(), meta.subspaces, std::move(codebooks)));
  }
  s.quantize(quantized);
  s.rows = meta.rows;
  s.medoid = meta.medoid;
  if (!entrance.empty()) {
    ByteReader reader(entrance);
    std::vector<NodeId> ids(reader.get<std::uint32_t>());
    std::vector<std::vector<std::uint32_t>> edges(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = reader.get_list(edges[i]);
    s.entrance.load(*quantized, ids, edges);
  }
  state_bytes_ = std::filesystem::file_size(path);
  return meta.begin_lsn;
}

}  // namespace navis
