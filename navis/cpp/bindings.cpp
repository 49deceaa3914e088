// The one file that knows Python. Checks shapes and types, gives the GIL back, calls the core.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstdlib>
#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

#include "index.hpp"
#include "packing.hpp"

namespace py = pybind11;
using namespace navis;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::uint64_t, py::array::c_style>;
using Release = py::gil_scoped_release;

void check(bool holds, const std::string& what) {
  if (!holds) throw Error(ErrorKind::bad_input, what);
}

// Rows of the index's own type, as bytes.
const std::byte* rows_of(const py::array& array, const IndexOptions& options, std::size_t n) {
  check(array.ndim() == 2 && (array.flags() & py::array::c_style),
        "vectors are an array of n rows, C-contiguous");
  check(static_cast<std::size_t>(array.shape(0)) == n, "as many ids as vectors are needed");
  check(array.shape(1) == options.dim, "the vectors have " + std::to_string(array.shape(1)) +
                                           " dimensions, the index has " +
                                           std::to_string(options.dim));
  check(static_cast<std::size_t>(array.itemsize()) == bytes_of(options.type),
        "the vectors' type is not the index's");
  return static_cast<const std::byte*>(array.data());
}

ProductQuantizer quantizer_of(const Floats& codebooks, std::size_t dim) {
  check(codebooks.ndim() == 3 && codebooks.shape(1) == 256,
        "codebooks are (subspaces, 256, width)");
  return {dim, static_cast<std::size_t>(codebooks.shape(0)),
          std::vector<float>(codebooks.data(), codebooks.data() + codebooks.size())};
}

std::size_t working_dim(const IndexOptions& options) {
  return WorkingSpace(options.dim, options.type, options.metric, options.radius).dim();
}

// Called from several threads during a build; Python is asked now and then whether to go on.
Progress progress_of(const py::object& callback) {
  if (callback.is_none()) return {};
  return [callback](std::size_t done, std::size_t total) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    return callback(done, total).cast<bool>();
  };
}

// Labels as rows of a sparse matrix (starts, labels), and values; None where there are none.
using Starts = std::optional<Ids>;
using LabelArray = std::optional<py::array_t<std::uint32_t, py::array::c_style>>;
using Values = std::optional<py::array_t<double, py::array::c_style>>;

AttributeRows attributes_of(const Starts& starts, const LabelArray& labels, const Values& values,
                            py::ssize_t n) {
  AttributeRows rows;
  check(!values || values->size() == n, "as many values as vectors are needed");
  check(!starts == !labels &&
            (!starts || (starts->size() == n + 1 &&
                         static_cast<py::ssize_t>(starts->data()[n]) == labels->size())),
        "labels are n + 1 starts and that many labels");
  if (starts) rows.label_at = starts->data();
  if (labels) rows.labels = labels->data();
  if (values) rows.values = values->data();
  return rows;
}

void build(const std::filesystem::path& folder, const IndexOptions& options, const py::array& raw,
           const Ids& ids, const Floats& codebooks, const BuildOptions& how,
           const py::object& progress, const std::optional<Floats>& centres, std::size_t largest,
           const std::filesystem::path& file, std::uint64_t offset, const Starts& starts,
           const LabelArray& labels, const Values& values) {
  const BuildData data{rows_of(raw, options, ids.size()),
                       ids.data(),
                       static_cast<std::size_t>(ids.size()),
                       file,
                       offset,
                       attributes_of(starts, labels, values, ids.size())};
  const ProductQuantizer quantizer = quantizer_of(codebooks, working_dim(options));
  const Progress report = progress_of(progress);
  Release release;
  if (centres) {
    const std::span<const float> rows(centres->data(), static_cast<std::size_t>(centres->size()));
    Index::build_out_of_core(folder, options, data, quantizer, rows, largest, how, report);
  } else {
    Index::build(folder, options, data, quantizer, how, report);
  }
#ifdef __GLIBC__
  // The index that is opened next has the same budget: what was freed is not to lie under it.
  ::malloc_trim(0);
#endif
}

// `edges` has one row per vector, of which the first counts[i] are used.
void build_from_graph(const std::filesystem::path& folder, const IndexOptions& options,
                      const py::array& raw, const Ids& ids, const Floats& codebooks,
                      const py::array_t<std::uint8_t, py::array::c_style>& counts,
                      const py::array_t<std::uint32_t, py::array::c_style>& edges, NodeId entry,
                      std::uint64_t seed, const py::object& progress,
                      const std::filesystem::path& file, std::uint64_t offset) {
  const auto n = static_cast<std::size_t>(ids.size());
  check(edges.ndim() == 2 && edges.shape(0) == ids.size() && counts.size() == ids.size(),
        "one count and one row of edges per vector are needed");
  const BuildData data{rows_of(raw, options, n), ids.data(), n, file, offset};
  const Graph graph{static_cast<std::size_t>(edges.shape(1)),
                    {counts.data(), counts.data() + n},
                    {edges.data(), edges.data() + edges.size()}};
  const ProductQuantizer quantizer = quantizer_of(codebooks, working_dim(options));
  const Progress report = progress_of(progress);
  Release release;
  Index::build_from_graph(folder, options, data, graph, entry, quantizer, seed, report);
}

py::tuple search(Index& index, const Floats& queries, SearchOptions options,
                 const std::vector<Filter>& filters) {
  check(queries.ndim() == 2 && queries.shape(1) == index.options().dim,
        "the queries have " + std::to_string(queries.ndim() == 2 ? queries.shape(1) : 0) +
            " dimensions, the index has " + std::to_string(index.options().dim));
  check(options.k > 0 && options.threads > 0, "k and threads are 1 or more");
  options.filters = filters;
  const py::ssize_t n = queries.shape(0), k = options.k;
  Ids ids({n, k});
  Floats distances({n, k}), micros({n});
  {
    const float* in = queries.data();
    auto* out_ids = ids.mutable_data();
    auto* out_distances = distances.mutable_data();
    auto* out_micros = micros.mutable_data();
    Release release;
    index.search(in, static_cast<std::size_t>(n), options, out_ids, out_distances, out_micros);
  }
  return py::make_tuple(ids, distances, micros);
}

py::dict counters(Index& index) {
  const Counters& c = index.store().counters;
  py::dict out;
  c.each([&](const char* name, const auto& value) { out[name] = value.load(); });
  const Stats s = index.stats();
  out["wal_records"] = s.wal.records;
  out["wal_payload_bytes"] = s.wal.payload_bytes;
  out["wal_writes"] = s.wal.writes;
  out["wal_written_bytes"] = s.wal.written_bytes;
  out["wal_syncs"] = s.wal.syncs;
  out["cache_hits"] = s.cache.hits;
  out["cache_misses"] = s.cache.misses;
  return out;
}

template <class Report>
py::dict dict_of(const Report& report) {
  py::dict out;
  report.each([&](const char* name, const auto& value) { out[name] = value; });
  return out;
}

template <class Call>
auto released(Call&& call) {
  Release release;
  return call();
}

template <class E>
void values(py::module_& m, const char* name, std::initializer_list<std::pair<const char*, E>> of) {
  py::enum_<E> e(m, name);
  for (const auto& [word, value] : of) e.value(word, value);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The engine of navis; navis.Index is its public face.";
  static py::exception<Error> error(m, "Error", PyExc_RuntimeError);
  py::register_exception_translator([](std::exception_ptr p) {
    const auto raise = [](ErrorKind kind, const char* what) {
      static constexpr const char* kinds[] = {"bad_input", "environment", "corrupt",
                                              "io",        "no_space",    "closed"};
      py::object raised = py::handle(error)(what);
      raised.attr("kind") = kinds[static_cast<int>(kind)];
      PyErr_SetObject(error.ptr(), raised.ptr());
    };
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      raise(e.kind(), e.what());
    } catch (const std::system_error& e) {  // of files; the message names them
      raise(kind_of(e.code().value()), e.what());
    }
  });

  values<DataType>(m, "DataType",
                   {{"float32", DataType::float32},
                    {"float16", DataType::float16},
                    {"uint8", DataType::uint8},
                    {"int8", DataType::int8}});
  values<Metric>(
      m, "Metric",
      {{"l2", Metric::l2}, {"inner_product", Metric::inner_product}, {"cosine", Metric::cosine}});
  values<Layout>(m, "Layout", {{"packed", Layout::packed}, {"selective", Layout::selective}});
  values<EntranceMode>(m, "Entrance",
                       {{"none", EntranceMode::none},
                        {"fixed", EntranceMode::fixed},
                        {"dynamic", EntranceMode::dynamic}});
  values<CachePolicy>(
      m, "CachePolicy",
      {{"lfu", CachePolicy::lfu}, {"lru", CachePolicy::lru}, {"none", CachePolicy::none}});
  values<Durability>(
      m, "Durability",
      {{"sync", Durability::sync}, {"group", Durability::group}, {"none", Durability::none}});
  py::class_<IndexOptions>(m, "IndexOptions")
      .def(py::init<>())
      .def_readwrite("dim", &IndexOptions::dim)
      .def_readwrite("type", &IndexOptions::type)
      .def_readwrite("metric", &IndexOptions::metric)
      .def_readwrite("layout", &IndexOptions::layout)
      .def_readwrite("degree", &IndexOptions::degree)
      .def_readwrite("insert_list", &IndexOptions::insert_list)
      .def_readwrite("alpha", &IndexOptions::alpha)
      .def_readwrite("radius", &IndexOptions::radius)
      .def_readwrite("entrance_share", &IndexOptions::entrance_share);
  py::class_<OpenOptions>(m, "OpenOptions")
      .def(py::init<>())
      .def_readwrite("readonly", &OpenOptions::readonly)
      .def_readwrite("memory_budget", &OpenOptions::memory_budget)
      .def_readwrite("durability", &OpenOptions::durability)
      .def_readwrite("window_s", &OpenOptions::window_s)
      // By name: shorthaul.uring has made a Python type of this enumeration already.
      .def("io",
           [](OpenOptions& options, const std::string& name) {
             using shorthaul::uring::Backend;
             options.io = name == "uring"   ? Backend::uring
                          : name == "posix" ? Backend::posix
                                            : Backend::automatic;
           })
      .def_readwrite("direct", &OpenOptions::direct)
      .def_readwrite("cache", &OpenOptions::cache)
      .def_readwrite("entrance", &OpenOptions::entrance)
      .def_readwrite("beam", &OpenOptions::beam)
      .def_readwrite("in_flight", &OpenOptions::in_flight)
      .def_readwrite("share_pages", &OpenOptions::share_pages)
      .def_readwrite("rerank", &OpenOptions::rerank)
      .def_readwrite("pending_bytes", &OpenOptions::pending_bytes)
      .def_readwrite("checkpoint_bytes", &OpenOptions::checkpoint_bytes)
      .def_readwrite("write_rate", &OpenOptions::write_rate);
  py::class_<Rerank>(m, "Rerank")
      .def(py::init<>())
      .def_readwrite("group", &Rerank::group)
      .def_readwrite("margin", &Rerank::margin);
  py::class_<Filter>(m, "Filter")
      .def(py::init<>())
      .def_readwrite("any_of", &Filter::any_of)
      .def_readwrite("all_of", &Filter::all_of)
      .def_readwrite("none_of", &Filter::none_of)
      .def_readwrite("between", &Filter::between);
  values<FilterMethod>(m, "FilterMethod",
                       {{"automatic", FilterMethod::automatic},
                        {"walk", FilterMethod::walk},
                        {"scan", FilterMethod::scan}});
  py::class_<SearchOptions>(m, "SearchOptions")
      .def(py::init<>())
      .def_readwrite("k", &SearchOptions::k)
      .def_readwrite("list", &SearchOptions::list)
      .def_readwrite("threads", &SearchOptions::threads)
      .def_readwrite("rerank", &SearchOptions::rerank)
      .def_readwrite("filter_method", &SearchOptions::filter_method);
  py::class_<BuildOptions>(m, "BuildOptions")
      .def(py::init<>())
      .def_readwrite("degree", &BuildOptions::degree)
      .def_readwrite("search_list", &BuildOptions::search_list)
      .def_readwrite("alpha", &BuildOptions::alpha)
      .def_readwrite("threads", &BuildOptions::threads)
      .def_readwrite("seed", &BuildOptions::seed);

  m.def("build", &build);
  m.def("build_from_graph", &build_from_graph);
  m.def("simulate_cache",
        [](const py::array_t<std::uint32_t, py::array::c_style>& ids,
           const py::array_t<std::uint32_t, py::array::c_style>& depths, std::size_t entries,
           CachePolicy policy, const std::vector<NodeId>& pinned, std::uint64_t seed) {
          check(ids.size() == depths.size(), "one depth per id");
          std::vector<TraceAccess> trace(static_cast<std::size_t>(ids.size()));
          for (std::size_t i = 0; i < trace.size(); ++i)
            trace[i] = {ids.data()[i], depths.data()[i]};
          Release release;
          const CacheCounters c = simulate_cache(trace, entries, policy, pinned, seed);
          return std::pair(c.hits, c.misses);
        });
  py::class_<Index>(m, "Index")
      .def(py::init<const std::filesystem::path&, const OpenOptions&>(), py::call_guard<Release>())
      .def_property_readonly("options", &Index::options)
      .def("search", &search)
      .def("insert",
           [](Index& index, const Ids& ids, const py::array& raw, std::size_t threads,
              const Starts& starts, const LabelArray& labels, const Values& values) {
             const std::byte* rows = rows_of(raw, index.options(), ids.size());
             const AttributeRows attributes = attributes_of(starts, labels, values, ids.size());
             Release release;
             return index.insert(ids.data(), rows, static_cast<std::size_t>(ids.size()), threads,
                                 attributes);
           })
      .def("attributes",
           [](Index& index, const Ids& ids) {
             std::vector<std::uint32_t> labels;
             std::vector<std::uint64_t> counts;
             py::array_t<double> values(ids.size());
             auto* out = values.mutable_data();
             {
               Release release;
               index.attributes(ids.data(), static_cast<std::size_t>(ids.size()), labels, counts,
                                out);
             }
             return py::make_tuple(
                 py::array_t<std::uint32_t>(static_cast<py::ssize_t>(labels.size()), labels.data()),
                 Ids(static_cast<py::ssize_t>(counts.size()), counts.data()), values);
           })
      .def("remove",
           [](Index& index, const Ids& ids) {
             Release release;
             return index.remove(ids.data(), static_cast<std::size_t>(ids.size()));
           })
      .def("get",
           [](Index& index, const Ids& ids, py::array& out) {
             rows_of(out, index.options(), ids.size());
             auto* rows = static_cast<std::byte*>(out.mutable_data());
             Release release;
             index.get(ids.data(), static_cast<std::size_t>(ids.size()), rows);
           })
      .def("contains", &Index::contains, py::call_guard<Release>())
      .def_property_readonly("live", &Index::live)
      .def_property_readonly("rows", &Index::rows)
      .def("ids",
           [](Index& index) {
             const auto all = released([&] { return index.ids(); });
             return Ids(static_cast<py::ssize_t>(all.size()), all.data());
           })
      .def("flush", &Index::flush, py::call_guard<Release>())
      .def("checkpoint", &Index::checkpoint, py::call_guard<Release>())
      .def_property("margin", &Index::margin, &Index::set_margin)
      .def("retrain",
           [](Index& index, const Floats& codebooks) {
             const ProductQuantizer quantizer =
                 quantizer_of(codebooks, working_dim(index.options()));
             Release release;
             index.retrain(quantizer);
           })
      .def("trace",
           [](Index& index, const Floats& queries, std::size_t list, bool seek) {
             check(queries.ndim() == 2 && queries.shape(1) == index.options().dim,
                   "queries of another dimension");
             Release release;
             return index.trace(queries.data(), static_cast<std::size_t>(queries.shape(0)), list,
                                seek);
           })
      .def("neighbours",
           [](Index& index, const Ids& ids) {
             Release release;
             return index.neighbours(ids.data(), static_cast<std::size_t>(ids.size()));
           })
      .def("compact",
           [](Index& index, const py::object& progress) {
             const Progress report = progress_of(progress);
             released([&] { index.compact(report); });
           })
      .def("snapshot",
           [](Index& index, const std::filesystem::path& folder, const py::object& progress) {
             const Progress report = progress_of(progress);
             released([&] { index.snapshot(folder, report); });
           })
      .def("verify", [](Index& index) { return dict_of(released([&] { return index.verify(); })); })
      .def("repair", [](Index& index) { return dict_of(released([&] { return index.repair(); })); })
      .def("stats", [](Index& index) { return dict_of(released([&] { return index.stats(); })); })
      .def("counters", &counters)
      .def("close", &Index::close, py::call_guard<Release>());
}
