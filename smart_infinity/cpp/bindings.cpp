// The only file that knows pybind11: checks arrays and buffers, releases the GIL, turns errors.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <system_error>

#include "codec.hpp"
#include "crc32c.hpp"
#include "cuda/topk_cuda.hpp"
#include "engine.hpp"
#include "opencl_update.hpp"
#include "stepper.hpp"

namespace py = pybind11;
using namespace smart_infinity;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = std::span<std::byte>;

void require(bool condition, const std::string& message) {
  if (!condition) throw Error(ErrorKind::bad_input, message);
}

// A contiguous buffer of anything, in bytes.
Bytes bytes_of_buffer(const py::buffer& buffer, bool changed) {
  const py::buffer_info info = buffer.request(changed);
  py::ssize_t expected = info.itemsize;
  for (py::ssize_t d = info.ndim; d-- > 0;) {
    require(info.strides[d] == expected || info.shape[d] <= 1, "a buffer is not contiguous");
    expected *= info.shape[d];
  }
  return {static_cast<std::byte*>(info.ptr),
          static_cast<std::size_t>(info.size) * static_cast<std::size_t>(info.itemsize)};
}

std::span<float> floats_of(const py::array& array, bool changed) {
  require(py::isinstance<Floats>(array) && array.ndim() == 1 &&
              (array.flags() & py::array::c_style) != 0,
          "expected a flat, contiguous array of float32");
  require(!changed || array.writeable(), "the array is read-only");
  return {static_cast<float*>(const_cast<void*>(array.data())),
          static_cast<std::size_t>(array.size())};
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::vector<T> vector_of(const Array<T>& array) {
  require(array.ndim() == 1, "expected a flat array");
  return std::vector<T>(array.data(), array.data() + array.size());
}

Shape shape_of(Kind kind, bool momentum, Moments moments, std::uint32_t tile,
               const Array<std::uint32_t>& n) {
  return {kind, momentum, moments, tile, vector_of(n)};
}

py::dict dict_of(const Shape& shape) {
  py::dict found;
  found["kind"] = shape.kind;
  found["momentum"] = shape.momentum;
  found["moments"] = shape.moments;
  found["tile"] = shape.tile;
  found["elements"] = py::array_t<std::uint32_t>(static_cast<py::ssize_t>(shape.elements.size()),
                                                 shape.elements.data());
  found["arrays"] = shape.arrays();
  found["record_bytes"] = shape.record_bytes();
  return found;
}

// The values of an enumeration count from 0, in the order of their names.
template <class Enum>
void def_enum(py::module_& module, const char* name, std::initializer_list<const char*> values) {
  py::native_enum<Enum> made(module, name, "enum.Enum");
  int number = 0;
  for (const char* value : values) made.value(value, static_cast<Enum>(number++));
  made.finalize();
}

// What a state on disk and an engine on it tell alike.
template <class Class, class Owner>
void def_state(Class& bound, const StateFile& (*file)(const Owner&)) {
  bound.def_property_readonly("shape", [file](const Owner& o) { return dict_of(file(o).shape()); })
      .def_property_readonly("description",
                             [file](const Owner& o) { return file(o).description(); })
      .def_property_readonly("step", [file](const Owner& o) { return file(o).committed().step; })
      .def_property_readonly("note",
                             [file](const Owner& o) { return py::bytes(file(o).committed().note); })
      .def_property_readonly("previous_step", [file](const Owner& o) {
        const auto& previous = file(o).previous();
        return previous ? py::cast(previous->step) : py::none();
      });
}

py::dict dict_of(const EngineCounters& c) {
  py::dict found;
  found["read_bytes"] = c.read_bytes;
  found["write_bytes"] = c.write_bytes;
  found["landed_read_bytes"] = c.landed_read_bytes;
  found["landed_write_bytes"] = c.landed_write_bytes;
  found["reads"] = c.reads;
  found["writes"] = c.writes;
  found["tiles"] = c.tiles;
  found["meta_bytes"] = c.meta_bytes;
  found["kernel_s"] = c.kernel_s;
  found["sum_s"] = c.sum_s;
  return found;
}

// Errors keep their kind: the package turns it into its own classes.
void translate(std::exception_ptr thrown) {
  const auto raise = [](const char* kind, const char* message) {
    const py::object error = py::module_::import("smart_infinity.errors").attr("from_core");
    const py::object made = error(kind, message);
    PyErr_SetObject(py::type::handle_of(made).ptr(), made.ptr());
  };
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const Error& error) {
    raise(name_of(error.kind()), error.what());
  } catch (const std::system_error& error) {
    raise("io", error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using py::arg;
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::register_local_exception_translator(translate);

  def_enum<Kind>(module, "Kind", {"adamw", "adam", "adagrad", "sgd"});
  def_enum<Dtype>(module, "Dtype", {"float32", "bfloat16", "float16"});
  def_enum<Moments>(module, "Moments", {"float32", "bfloat16", "blocks8"});
  def_enum<Encoding>(module, "Encoding", {"dense", "topk"});
  def_enum<Updater>(module, "Updater", {"cpu", "opencl"});

  py::class_<Settings>(module, "Settings")
      .def(py::init<>())
      .def_readwrite("lr", &Settings::lr)
      .def_readwrite("beta1", &Settings::beta1)
      .def_readwrite("beta2", &Settings::beta2)
      .def_readwrite("eps", &Settings::eps)
      .def_readwrite("weight_decay", &Settings::weight_decay)
      .def_readwrite("momentum", &Settings::momentum)
      .def_readwrite("dampening", &Settings::dampening)
      .def_readwrite("lr_decay", &Settings::lr_decay)
      .def_readwrite("nesterov", &Settings::nesterov)
      .def_readwrite("maximize", &Settings::maximize);

  py::class_<SegmentColumns>(module, "Segments")
      .def(py::init([](const Array<std::uint32_t>& tile, const Array<std::uint32_t>& begin,
                       const Array<std::uint32_t>& end, const Array<std::uint32_t>& parameter,
                       const Array<bool>& rest, const Array<std::uint64_t>& element) {
             return SegmentColumns{vector_of(tile),      vector_of(begin), vector_of(end),
                                   vector_of(parameter), vector_of(rest),  vector_of(element)};
           }),
           arg("tile"), arg("begin"), arg("end"), arg("parameter"), arg("rest"), arg("element"));

  // ------------------------------------------------------------------ state on disk
  module.def(
      "create_state",
      [](const std::filesystem::path& folder, Kind kind, bool momentum, Moments moments,
         std::uint32_t tile, const Array<std::uint32_t>& elements, const std::string& description,
         std::size_t note_bytes) {
        const Shape shape = shape_of(kind, momentum, moments, tile, elements);
        const py::gil_scoped_release unlocked;
        StateFile::create(folder, shape, description, note_bytes);
      },
      arg("folder"), arg("kind"), arg("momentum"), arg("moments"), arg("tile"), arg("elements"),
      arg("description"), arg("note_bytes"));
  module.def(
      "needed_bytes",
      [](Kind kind, bool momentum, Moments moments, std::uint32_t tile,
         const Array<std::uint32_t>& elements, const std::string& description,
         std::size_t note_bytes) {
        return StateFile::needed_bytes(shape_of(kind, momentum, moments, tile, elements),
                                       description, note_bytes);
      },
      arg("kind"), arg("momentum"), arg("moments"), arg("tile"), arg("elements"),
      arg("description"), arg("note_bytes"));
  py::class_<StateFile> state(module, "State");
  def_state<py::class_<StateFile>, StateFile>(
      state, [](const StateFile& s) -> const StateFile& { return s; });
  state.def(py::init(&StateFile::open), arg("folder"), arg("readonly") = true)
      .def("offset", &StateFile::offset, arg("tile"), arg("extent"), arg("array"))
      .def("extent",
           [](const StateFile& s, std::size_t tile) { return s.committed().table.at(tile).extent; })
      .def("rollback", &StateFile::rollback, Unlocked())
      .def(
          "verify",
          [](const StateFile& s, bool previous) {
            std::vector<std::pair<std::size_t, std::size_t>> faults;
            const py::gil_scoped_release unlocked;
            require(!previous || s.previous(), "there is no previous step");
            for (const auto& f : s.verify(previous ? *s.previous() : s.committed())) {
              faults.emplace_back(f.tile, f.array);
            }
            return faults;
          },
          arg("previous") = false);

  // ------------------------------------------------------------------ a step
  py::class_<StepPlan>(module, "Plan")
      .def(py::init([](Kind kind, std::uint64_t step, const std::vector<Settings>& settings,
                       const std::vector<std::uint64_t>& steps, const Array<std::uint16_t>& of,
                       float unscale, float clip) {
             return StepPlan{step, hypers(kind, settings, steps, unscale, clip), vector_of(of)};
           }),
           arg("kind"), arg("step"), arg("settings"), arg("steps"), arg("hyper_of"),
           arg("unscale") = 1.0F, arg("clip") = 1.0F);
  py::class_<Stepper>(module, "Stepper")
      .def(py::init([](Kind kind, bool momentum, Moments moments, std::uint32_t tile,
                       const Array<std::uint32_t>& elements, const SegmentColumns& segments,
                       Updater updater) {
             Shape shape = shape_of(kind, momentum, moments, tile, elements);
             const py::gil_scoped_release unlocked;  // a kernel may be compiled
             return std::make_unique<Stepper>(std::move(shape), segments, updater);
           }),
           arg("kind"), arg("momentum"), arg("moments"), arg("tile"), arg("elements"),
           arg("segments"), arg("update") = Updater::cpu)
      .def(
          "run",
          [](Stepper& s, std::size_t tile, const StepPlan& plan, const py::buffer& gradient,
             Dtype type, const py::buffer& record, const py::buffer& out, Dtype out_type,
             Encoding encoding) {
            const Gradient given{bytes_of_buffer(gradient, false), encoding, type};
            const Bytes arrays = bytes_of_buffer(record, true), to = bytes_of_buffer(out, true);
            const py::gil_scoped_release unlocked;
            return s.run(tile, plan, given, arrays, to, out_type);
          },
          arg("tile"), arg("plan"), arg("gradient"), arg("type"), arg("record"), arg("out"),
          arg("out_type"), arg("encoding") = Encoding::dense);

  // ------------------------------------------------------------------ the engine
  py::class_<Engine> engine(module, "Engine");
  def_state<py::class_<Engine>, Engine>(
      engine, [](const Engine& e) -> const StateFile& { return e.file(); });
  engine
      .def(py::init([](const std::filesystem::path& folder, const SegmentColumns& segments,
                       unsigned slots, std::uint64_t landing_bytes, double read_rate,
                       double write_rate, bool trace, Updater update) {
             const EngineOptions options{slots,      landing_bytes, read_rate,
                                         write_rate, trace,         update};
             const py::gil_scoped_release unlocked;  // a kernel may be compiled
             StateFile file = StateFile::open(folder);
             auto cut = segments_of(file.shape(), segments);
             return std::make_unique<Engine>(std::move(file), std::move(cut), options);
           }),
           arg("folder"), arg("segments"), arg("slots") = 8, arg("landing_bytes") = 0,
           arg("read_rate") = 0.0, arg("write_rate") = 0.0, arg("trace") = false,
           arg("update") = Updater::cpu)
      .def_property_readonly("io_reason", &Engine::io_reason)
      .def_property_readonly("direct", &Engine::direct)
      .def("begin", &Engine::begin, arg("plan"), Unlocked())
      // Memory named in a job must stay until its event: the caller's slots do.
      .def(
          "update",
          [](Engine& e, std::uint32_t tile, std::uint64_t tag, const py::buffer& gradient,
             Encoding encoding, Dtype type, const py::buffer& out, Dtype out_type) {
            const Gradient given{bytes_of_buffer(gradient, false), encoding, type};
            e.submit(Job::update(tile, tag, given, bytes_of_buffer(out, true), out_type));
          },
          arg("tile"), arg("tag"), arg("gradient"), arg("encoding"), arg("type"), arg("out"),
          arg("out_type"))
      .def(
          "land",
          [](Engine& e, std::uint32_t tile, std::uint64_t tag, const py::buffer& gradient,
             Dtype type, bool add) {
            const Gradient given{bytes_of_buffer(gradient, false), Encoding::dense, type};
            e.submit(Job::land(tile, tag, given, add));
          },
          arg("tile"), arg("tag"), arg("gradient"), arg("type"), arg("add") = false)
      .def(
          "update_landed",
          [](Engine& e, std::uint32_t tile, std::uint64_t tag, const py::buffer& out,
             Dtype out_type) {
            e.submit(Job::update_landed(tile, tag, bytes_of_buffer(out, true), out_type));
          },
          arg("tile"), arg("tag"), arg("out"), arg("out_type"))
      .def(
          "read",
          [](Engine& e, std::uint32_t tile, std::uint64_t tag, const py::buffer& out,
             std::uint32_t mask, bool decoded) {
            e.submit(Job::read(tile, tag, bytes_of_buffer(out, true), mask, decoded));
          },
          arg("tile"), arg("tag"), arg("out"), arg("mask"), arg("decoded") = true)
      .def(
          "write",
          [](Engine& e, std::uint32_t tile, std::uint64_t tag, const py::buffer& values,
             std::uint32_t mask, bool decoded) {
            e.submit(Job::write(tile, tag, bytes_of_buffer(values, false), mask, decoded));
          },
          arg("tile"), arg("tag"), arg("values"), arg("mask"), arg("decoded") = true)
      .def(
          "next",
          [](Engine& e, double timeout_s) -> py::object {
            Event event;
            bool there = false;
            {
              const py::gil_scoped_release unlocked;
              there = e.next(event, timeout_s);
            }
            if (!there) return py::none();
            constexpr const char* kTypes[] = {"done", "settled", "failed"};
            constexpr const char* kJobs[] = {"update", "land", "update_landed", "read", "write"};
            return py::make_tuple(kTypes[static_cast<int>(event.type)],
                                  kJobs[static_cast<int>(event.job)], event.tile, event.tag,
                                  event.bytes, event.finite, name_of(event.error), event.message);
          },
          arg("timeout_s"))
      .def(
          "prepare",
          [](Engine& e, std::uint64_t step, const std::string& note) { e.prepare(step, note); },
          arg("step"), arg("note"), Unlocked())
      .def("commit", &Engine::commit, Unlocked())
      .def("abandon", &Engine::abandon, Unlocked())
      .def("rollback", &Engine::rollback, Unlocked())
      .def_property_readonly("counters", [](const Engine& e) { return dict_of(e.counters()); })
      .def("take_trace", [](Engine& e) {
        constexpr const char* kWhats[] = {"read", "update", "hand_up", "write_parameters",
                                          "write_moments"};
        py::list spans;
        for (const Span& s : e.take_trace()) {
          spans.append(py::make_tuple(kWhats[static_cast<int>(s.what)], s.tile, s.begin, s.end));
        }
        return spans;
      });

  // ------------------------------------------------------------------ kernels
  module.def(
      "update",
      [](Kind kind, const Settings& settings, std::uint64_t step, float unscale, float clip,
         bool rest, const py::array& parameters, const py::array& gradients,
         const std::optional<py::array>& first, const std::optional<py::array>& second) {
        const std::span<float> p = floats_of(parameters, true), g = floats_of(gradients, false);
        const std::size_t moments = moments_of(kind, settings.momentum != 0);
        require(g.size() == p.size(), "parameters and gradients of different lengths");
        require(first.has_value() == (moments > 0) && second.has_value() == (moments > 1),
                "this optimizer has " + std::to_string(moments) + " arrays of moments");
        const auto moment = [&](const std::optional<py::array>& array) -> float* {
          if (!array) return nullptr;
          const std::span<float> found = floats_of(*array, true);
          require(found.size() == p.size(), "moments of another length");
          return found.data();
        };
        float *m = moment(first), *v = moment(second);
        const Hyper h = hyper(kind, settings, step, unscale, clip);
        const py::gil_scoped_release unlocked;
        kernels::update(kind, h, rest ? kernels::Recipe::rest : kernels::Recipe::whole, p.size(),
                        p.data(), g.data(), m, v);
      },
      arg("kind"), arg("settings"), arg("step"), arg("unscale"), arg("clip"), arg("rest"),
      arg("parameters"), arg("gradients"), arg("first") = py::none(), arg("second") = py::none());
  module.def(
      "check_settings", [](Kind kind, const Settings& settings) { hyper(kind, settings, 1, 1, 1); },
      arg("kind"), arg("settings"));
  module.def("simd", [] { return kernels::name_of(kernels::active()); });
  module.def("simd_levels", [] {
    std::vector<std::string> names;
    for (const kernels::Level level : kernels::kLevels) {
      if (kernels::supported(level)) names.emplace_back(kernels::name_of(level));
    }
    return names;
  });
  module.def("use_simd", [](const std::string& name) { kernels::use(kernels::level_named(name)); });
  module.def(
      "to_float",
      [](Dtype type, const py::buffer& values, const py::array& out) {
        const Bytes from = bytes_of_buffer(values, false);
        const std::span<float> to = floats_of(out, true);
        require(from.size() == to.size() * bytes_of(type), "values and out of different lengths");
        const py::gil_scoped_release unlocked;
        kernels::to_float(type, from.data(), to.size(), to.data());
      },
      arg("type"), arg("values"), arg("out"));
  module.def(
      "from_float",
      [](Dtype type, const py::array& values, const py::buffer& out) {
        const std::span<float> from = floats_of(values, false);
        const Bytes to = bytes_of_buffer(out, true);
        require(to.size() == from.size() * bytes_of(type), "values and out of different lengths");
        const py::gil_scoped_release unlocked;
        kernels::from_float(type, from.data(), from.size(), to.data());
      },
      arg("type"), arg("values"), arg("out"));
  // Why there is no OpenCL device, or an empty text; and which one there is.
  module.def("opencl_reason", &opencl::unavailable_reason, Unlocked());
  module.def("opencl_device", &opencl::device_name, Unlocked());
  module.def("finite", [](const py::array& values) {
    const std::span<float> all = floats_of(values, false);
    const py::gil_scoped_release unlocked;
    return kernels::finite(all.data(), all.size());
  });
  module.def("topk_kept", &topk::kept, arg("n"), arg("ratio"));
  module.def("topk_bytes", &topk::encoded_bytes, arg("n"), arg("k"), arg("values"));
  module.def(
      "topk_encode",
      [](const py::array& gradient, std::size_t k, Dtype values, const py::buffer& out,
         const std::optional<py::array>& residual) {
        const std::span<float> g = floats_of(gradient, false);
        const Bytes to = bytes_of_buffer(out, true);
        const std::size_t bytes = topk::checked_bytes(g.size(), k, values, to.size());
        float* left = residual ? floats_of(*residual, true).data() : nullptr;
        require(!residual || static_cast<std::size_t>(residual->size()) == g.size(),
                "a residual of another length");
        const py::gil_scoped_release unlocked;
        thread_local topk::Scratch scratch;
        topk::encode(g.data(), g.size(), k, values, to.data(), left, scratch);
        return bytes;
      },
      arg("gradient"), arg("k"), arg("values"), arg("out"), arg("residual") = py::none());
  // The same on a GPU: `gradient` and `residual` (0: none) are addresses of n floats there,
  // `stream` that of a cudaStream_t. Whose memory it is, and that it stays, is the caller's to
  // know.
  module.def(
      "cuda_topk_encode",
      [](int device, std::uintptr_t stream, std::uintptr_t gradient, std::size_t n, std::size_t k,
         Dtype values, const py::buffer& out, std::uintptr_t residual) {
        const Bytes to = bytes_of_buffer(out, true);
        const std::size_t bytes = topk::checked_bytes(n, k, values, to.size());
        const py::gil_scoped_release unlocked;
        cuda::topk_encode(device, stream, reinterpret_cast<const float*>(gradient), n, k, values,
                          to.data(), reinterpret_cast<float*>(residual));
        return bytes;
      },
      arg("device"), arg("stream"), arg("gradient"), arg("n"), arg("k"), arg("values"), arg("out"),
      arg("residual") = 0);
  module.def("cuda_reason", &cuda::unavailable_reason, Unlocked());
  module.def(
      "topk_decode",
      [](const py::buffer& encoded, Dtype values, const py::array& out) {
        const Bytes from = bytes_of_buffer(encoded, false);
        const std::span<float> to = floats_of(out, true);
        const py::gil_scoped_release unlocked;
        topk::decode(from, to.size(), values, to.data());
      },
      arg("encoded"), arg("values"), arg("out"));
  module.def(
      "page_sum",
      [](const py::buffer& buffer) {
        const Bytes bytes = bytes_of_buffer(buffer, false);
        const py::gil_scoped_release unlocked;
        return page_sum(bytes.data(), bytes.size());
      },
      arg("bytes"));
  module.def(
      "crc32c",
      [](const py::buffer& buffer, std::uint32_t crc) {
        const Bytes bytes = bytes_of_buffer(buffer, false);
        const py::gil_scoped_release unlocked;
        return crc32c(crc, bytes.data(), bytes.size());
      },
      arg("bytes"), arg("crc") = 0);
}
