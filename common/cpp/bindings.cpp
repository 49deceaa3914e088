// The only file that knows pybind11: checks arrays, keeps them alive, releases the GIL.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <array>
#include <mutex>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "shorthaul/uring.hpp"

namespace py = pybind11;
using namespace shorthaul::uring;

namespace {

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

std::span<std::byte> bytes_of(const py::array& array, bool changed) {
  require(py::isinstance<py::array_t<std::uint8_t>>(array) && array.ndim() == 1 &&
              (array.flags() & py::array::c_style) != 0,
          "expected a flat, contiguous array of uint8; .view(np.uint8) makes one");
  require(!changed || array.writeable(), "the array is read-only");
  // Whether it may be changed was asked above; the span serves both directions.
  auto* data = static_cast<std::byte*>(const_cast<void*>(array.data()));
  return {data, static_cast<std::size_t>(array.nbytes())};
}

py::array_t<std::uint8_t> make_buffer(std::size_t bytes) {
  auto buffer = std::make_unique<Buffer>(bytes);
  const py::capsule owner(buffer.get(), [](void* held) { delete static_cast<Buffer*>(held); });
  const Buffer& owned = *buffer.release();
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(owned.size()),
                                   reinterpret_cast<std::uint8_t*>(owned.data()), owner);
}

// A ring, and what its requests need until they end.
class HeldRing : public Ring {
 public:
  HeldRing(unsigned depth, Backend backend, unsigned posix_threads)
      : Ring({depth, backend, posix_threads}) {}
  ~HeldRing() {
    const py::gil_scoped_release unlocked;
    const Ring ended = std::move(*this);
  }

  template <bool kReads>
  void move(const File& file, std::uint64_t offset, const py::array& array, std::uint64_t tag) {
    const auto lock = claim();
    const auto bytes = bytes_of(array, kReads);
    const auto place = bytes.empty() ? 0 : reinterpret_cast<std::uintptr_t>(bytes.data());
    require(!file.direct() || (offset | bytes.size() | place) % kAlignment == 0,
            "O_DIRECT wants offset, size and memory in multiples of 4096 (uring.buffer())");
    kReads ? read(file, offset, bytes, next_) : write(file, offset, bytes, next_);
    held_.emplace(next_++, std::pair{tag, array});
  }

  void sync(const File& file, std::uint64_t tag) {
    const auto lock = claim();
    Ring::sync(file, next_);
    held_.emplace(next_++, std::pair{tag, py::none()});
  }

  bool register_files(const std::vector<File>& files) {
    const auto lock = claim();
    return Ring::register_files(files);
  }

  bool register_buffers(const std::vector<py::array>& arrays) {
    const auto lock = claim();
    std::vector<std::span<std::byte>> spans;
    for (const auto& array : arrays) spans.push_back(bytes_of(array, true));
    const bool taken = Ring::register_buffers(spans);
    registered_ = arrays;
    return taken;
  }

  std::vector<Completion> submit_and_wait(std::size_t minimum) {
    const auto lock = claim();
    std::vector<Completion> completions;
    {
      const py::gil_scoped_release unlocked;
      Ring::submit_and_wait(minimum, completions);
    }
    for (Completion& completion : completions) {
      completion.tag = held_.extract(completion.tag).mapped().first;
    }
    return completions;
  }

 private:
  std::unique_lock<std::mutex> claim() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) throw std::runtime_error("the ring is waiting in another thread");
    return lock;
  }

  std::mutex mutex_;
  std::uint64_t next_ = 0;
  std::unordered_map<std::uint64_t, std::pair<std::uint64_t, py::object>> held_;  // tag, array
  std::vector<py::array> registered_;
};

void as_os_error(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const std::system_error& error) {
    const py::tuple arguments = py::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_uring, module) {
  using py::arg;
  py::register_local_exception_translator(as_os_error);
  module.attr("ALIGNMENT") = kAlignment;
  module.def("buffer", make_buffer, arg("nbytes"));
  module.def("availability", [] {
    std::string reason;
    const bool available = is_available(&reason);
    return std::pair{available, reason};
  });

  py::native_enum<Backend>(module, "Backend", "enum.Enum")
      .value("automatic", Backend::automatic)
      .value("uring", Backend::uring)
      .value("posix", Backend::posix)
      .finalize();
  py::native_enum<File::Mode>(module, "Mode", "enum.Enum")
      .value("read", File::Mode::read)
      .value("write", File::Mode::write)
      .value("create", File::Mode::create)
      .finalize();

  py::class_<File>(module, "File")
      .def(py::init(&File::open), arg("path"), arg("mode") = File::Mode::read, arg("direct") = true)
      .def_property_readonly("path", &File::path)
      .def_property_readonly("direct", &File::direct)
      .def_property_readonly("size", &File::size)
      .def("resize", &File::resize, arg("nbytes"))
      .def("allocate", &File::allocate, arg("nbytes"))
      .def("sync",
           [](File& file) {
             File kept = file;  // another thread may close it
             const py::gil_scoped_release unlocked;
             kept.sync();
           })
      .def("close", [](File& file) { file = File(); });

  py::class_<Completion>(module, "Completion")
      .def_readonly("tag", &Completion::tag)
      .def_readonly("error", &Completion::error)
      .def_readonly("bytes", &Completion::bytes);

  py::class_<HeldRing>(module, "Ring")
      .def(py::init<unsigned, Backend, unsigned>(), arg("depth") = 256,
           arg("backend") = Backend::automatic, arg("posix_threads") = 4)
      .def_property_readonly("backend", &HeldRing::backend)
      .def_property_readonly("reason", &HeldRing::reason)
      .def_property_readonly("depth", &HeldRing::depth)
      .def_property_readonly("in_flight", &HeldRing::in_flight)
      .def("register_files", &HeldRing::register_files, arg("files"))
      .def("register_buffers", &HeldRing::register_buffers, arg("buffers"))
      .def("read", &HeldRing::move<true>, arg("file"), arg("offset"), arg("into"), arg("tag") = 0)
      .def("write", &HeldRing::move<false>, arg("file"), arg("offset"), arg("data"), arg("tag") = 0)
      .def("sync", &HeldRing::sync, arg("file"), arg("tag") = 0)
      .def("submit_and_wait", &HeldRing::submit_and_wait, arg("minimum") = 0)
      .def("_counters", [](const HeldRing& ring) {
        const Counters& c = ring.counters();
        return std::array{c.reads,       c.writes,    c.syncs,   c.read_bytes,
                          c.write_bytes, c.continued, c.submits, c.waits};
      });
}
