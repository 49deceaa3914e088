#include "opencl_update.hpp"

#ifdef SMART_INFINITY_WITH_OPENCL

#include <algorithm>
#include <array>
#include <utility>

#include "opencl_device.hpp"

namespace smart_infinity::opencl {
namespace {

constexpr std::size_t kGroup = 64;        // items of a work-group, see kernels.cl
constexpr std::size_t kRun = 8 * kGroup;  // elements it steps
constexpr std::uint32_t kSkipped = 0xFFFFFFFFU;

// As in kernels.cl.
struct Run {
  std::uint32_t begin, end, settings, rest;
};
using Packed = std::array<float, 16>;

Packed packed(const Hyper& h) {
  const auto flag = [](bool value) { return value ? 1.0F : 0.0F; };
  return {h.unscale,  h.clip,     flag(h.maximize), h.weight_decay, h.decay,      h.lerp,
          h.beta2,    h.fresh2,   h.bias2_sqrt,     h.eps,          h.minus_step, h.momentum,
          h.undamped, h.minus_lr, flag(h.nesterov), flag(h.first)};
}

// Which kernels an optimizer needs.
std::string options_of(const Shape& shape) {
  const char* name = shape.kind == Kind::adagrad ? "ADAGRAD"
                     : shape.kind == Kind::sgd   ? "SGD"
                                                 : "ADAM";
  return std::string("-D ") + name + " -D ARRAYS=" + std::to_string(shape.arrays()) +
         " -D GROUP=" + std::to_string(kGroup);
}

// Memory of the device; grows, never shrinks.
class Memory {
 public:
  explicit Memory(Device& device) : device_(device) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { free(); }

  const cl_mem& handle() const { return handle_; }
  void reserve(std::size_t bytes) {
    if (bytes <= bytes_) return;
    free();
    cl_int status = CL_SUCCESS;
    handle_ =
        device_.cl.clCreateBuffer(device_.context, CL_MEM_READ_WRITE, bytes, nullptr, &status);
    if (status != CL_SUCCESS) handle_ = nullptr;
    check(status, "clCreateBuffer");
    bytes_ = bytes;
  }

 private:
  void free() {
    if (handle_ != nullptr) device_.cl.clReleaseMemObject(handle_);
    handle_ = nullptr;
    bytes_ = 0;
  }

  Device& device_;
  cl_mem handle_ = nullptr;
  std::size_t bytes_ = 0;
};

class OpenclTileUpdate final : public TileUpdate {
 public:
  explicit OpenclTileUpdate(const Shape& shape)
      : device_(device()),
        arrays_{Memory(device_), Memory(device_), Memory(device_)},
        gradient_(device_),
        out_(device_),
        runs_memory_(device_),
        settings_(device_),
        starts_(device_),
        not_finite_(device_) {
    const cl_program program = device_.program(options_of(shape));
    cl_int status = CL_SUCCESS;
    queue_ = device_.cl.clCreateCommandQueue(device_.context, device_.id, 0, &status);
    check(status, "clCreateCommandQueue");
    try {
      dense_ = device_.cl.clCreateKernel(program, "step_dense", &status);
      check(status, "clCreateKernel");
      topk_ = device_.cl.clCreateKernel(program, "step_topk", &status);
      check(status, "clCreateKernel");
      for (std::size_t array = 0; array < shape.arrays(); ++array) {
        arrays_[array].reserve(shape.tile * sizeof(float));
      }
      gradient_.reserve(shape.tile * sizeof(float));
      out_.reserve(shape.tile * sizeof(std::uint16_t));
      starts_.reserve(sizeof(std::uint32_t));
      not_finite_.reserve(sizeof(std::uint32_t));
      warm_up(shape);
    } catch (...) {
      release();
      throw;
    }
  }
  OpenclTileUpdate(const OpenclTileUpdate&) = delete;
  OpenclTileUpdate& operator=(const OpenclTileUpdate&) = delete;
  ~OpenclTileUpdate() override { release(); }

  bool run(const Shape& shape, std::span<const Segment> segments, const StepPlan& plan,
           const Gradient& gradient, const Record& record, std::byte* out, Dtype out_type) override;

 private:
  void release() {
    if (dense_ != nullptr) device_.cl.clReleaseKernel(dense_);
    if (topk_ != nullptr) device_.cl.clReleaseKernel(topk_);
    if (queue_ != nullptr) device_.cl.clReleaseCommandQueue(queue_);
  }

  // Some drivers compile at the first launch: that is to be part of opening, not of a step.
  void warm_up(const Shape& shape) {
    float numbers[3] = {};
    std::byte encoded[4] = {};
    Record record{{}, 1};
    for (std::size_t array = 0; array < shape.arrays(); ++array) {
      record.arrays[array] = reinterpret_cast<std::byte*>(&numbers[array]);
    }
    float zero = 0;
    const Gradient gradients[] = {
        {std::as_bytes(std::span(&zero, 1)), Encoding::dense, Dtype::float32},
        {encoded, Encoding::topk, Dtype::float32}};
    for (const Gradient& gradient : gradients) {
      run(shape, {}, StepPlan{}, gradient, record, nullptr, Dtype::float32);
    }
  }

  // The tile in runs: a segment in parts, and what is between segments, which only goes up.
  void cut(std::span<const Segment> segments, const StepPlan& plan, std::size_t n);
  void add(std::size_t begin, std::size_t end, std::uint32_t settings, std::uint32_t rest);

  void write(Memory& memory, const void* from, std::size_t bytes) {
    memory.reserve(bytes);
    check(device_.cl.clEnqueueWriteBuffer(queue_, memory.handle(), CL_TRUE, 0, bytes, from, 0,
                                          nullptr, nullptr),
          "clEnqueueWriteBuffer");
  }
  void read(const Memory& memory, void* to, std::size_t bytes) {
    check(device_.cl.clEnqueueReadBuffer(queue_, memory.handle(), CL_TRUE, 0, bytes, to, 0, nullptr,
                                         nullptr),
          "clEnqueueReadBuffer");
  }
  template <class... Values>
  void launch(cl_kernel kernel, const Values&... values) {
    cl_uint at = 0;
    (check(device_.cl.clSetKernelArg(kernel, at++, sizeof values, &values), "clSetKernelArg"), ...);
    const std::size_t items = runs_.size() * kGroup, group = kGroup;
    check(device_.cl.clEnqueueNDRangeKernel(queue_, kernel, 1, nullptr, &items, &group, 0, nullptr,
                                            nullptr),
          "clEnqueueNDRangeKernel");
  }
  // With the arguments that both kernels begin with; as many arrays as the optimizer has.
  template <class... Values>
  void launch_on_tile(std::size_t arrays, cl_kernel kernel, const Values&... values) {
    const auto go = [&](const auto&... moments) {
      launch(kernel, runs_memory_.handle(), settings_.handle(), arrays_[0].handle(), moments...,
             out_.handle(), values...);
    };
    if (arrays == 1) {
      go();
    } else if (arrays == 2) {
      go(arrays_[1].handle());
    } else {
      go(arrays_[1].handle(), arrays_[2].handle());
    }
  }

  Device& device_;
  cl_command_queue queue_ = nullptr;
  cl_kernel dense_ = nullptr, topk_ = nullptr;
  std::array<Memory, 3> arrays_;
  Memory gradient_, out_, runs_memory_, settings_, starts_, not_finite_;
  std::vector<Run> runs_;
  std::vector<Packed> packed_;
};

void OpenclTileUpdate::add(std::size_t begin, std::size_t end, std::uint32_t settings,
                           std::uint32_t rest) {
  while (begin < end) {
    // Within a block of compressed gradients, so that its entries are next to each other.
    const std::size_t block = (begin / topk::kBlock + 1) * topk::kBlock;
    const std::size_t stop = std::min({end, begin + kRun, block});
    runs_.push_back(
        {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(stop), settings, rest});
    begin = stop;
  }
}

void OpenclTileUpdate::cut(std::span<const Segment> segments, const StepPlan& plan, std::size_t n) {
  runs_.clear();
  std::size_t at = 0;
  for (const Segment& s : segments) {
    const std::uint16_t which =
        s.parameter < plan.hyper_of.size() ? plan.hyper_of[s.parameter] : kSkip;
    if (which == kSkip) continue;
    add(at, s.begin, kSkipped, 0);
    add(s.begin, s.end, which, s.recipe == kernels::Recipe::rest ? 1 : 0);
    at = s.end;
  }
  add(at, n, kSkipped, 0);
}

bool OpenclTileUpdate::run(const Shape& shape, std::span<const Segment> segments,
                           const StepPlan& plan, const Gradient& gradient, const Record& record,
                           std::byte* out, Dtype out_type) {
  const std::size_t n = record.n;
  const std::size_t arrays = shape.arrays();
  const bool compressed = gradient.encoding == Encoding::topk;
  topk::Encoded parts;
  if (compressed) {
    parts = topk::parse(gradient.bytes, n, gradient.type);
  } else {
    check_dense(gradient, n);
  }
  if (n == 0) return true;
  cut(segments, plan, n);
  packed_.clear();
  for (const Hyper& h : plan.hypers) packed_.push_back(packed(h));
  if (packed_.empty()) packed_.emplace_back();

  write(runs_memory_, runs_.data(), runs_.size() * sizeof(Run));
  write(settings_, packed_.data(), packed_.size() * sizeof(Packed));
  for (std::size_t array = 0; array < arrays; ++array) {
    write(arrays_[array], record.arrays[array], n * sizeof(float));
  }
  write(gradient_, gradient.bytes.data(), gradient.bytes.size());
  std::uint32_t not_finite = 0;
  write(not_finite_, &not_finite, sizeof not_finite);
  const bool halves = out != nullptr && out_type != Dtype::float32;
  const auto as = static_cast<cl_uint>(halves ? out_type : Dtype::float32);
  const auto type = static_cast<cl_uint>(gradient.type);
  if (compressed) {
    write(starts_, parts.starts.data(), parts.starts.size() * sizeof(std::uint32_t));
    const auto indices_at = static_cast<cl_uint>(parts.indices - gradient.bytes.data());
    const auto values_at = static_cast<cl_uint>(parts.values - gradient.bytes.data());
    launch_on_tile(arrays, topk_, as, not_finite_.handle(), gradient_.handle(), type,
                   starts_.handle(), indices_at, values_at);
  } else {
    launch_on_tile(arrays, dense_, as, not_finite_.handle(), gradient_.handle(), type);
  }
  for (std::size_t array = 0; array < arrays; ++array) {
    read(arrays_[array], record.arrays[array], n * sizeof(float));
  }
  if (halves) {
    read(out_, out, n * sizeof(std::uint16_t));
  } else if (out != nullptr) {
    std::copy_n(record.arrays[0], n * sizeof(float), out);
  }
  read(not_finite_, &not_finite, sizeof not_finite);
  return not_finite == 0;
}

}  // namespace

std::string unavailable_reason() { return device().missing; }

std::string device_name() {
  if (!device().missing.empty()) {
    throw Error(ErrorKind::environment, "no OpenCL: " + device().missing);
  }
  return device().name;
}

std::unique_ptr<TileUpdate> tile_update(const Shape& shape) {
  device_name();
  if (shape.moments != Moments::float32) {
    throw Error(ErrorKind::bad_input,
                "update=opencl steps float32 moments only: use moments=float32 or update=cpu");
  }
  return std::make_unique<OpenclTileUpdate>(shape);
}

}  // namespace smart_infinity::opencl

#else

namespace smart_infinity::opencl {

std::string unavailable_reason() {
  return "built without OpenCL: apt-get install opencl-c-headers, then build again";
}

std::string device_name() {
  throw Error(ErrorKind::environment, "no OpenCL: " + unavailable_reason());
}

std::unique_ptr<TileUpdate> tile_update(const Shape&) {
  throw Error(ErrorKind::environment, "no OpenCL: " + unavailable_reason());
}

}  // namespace smart_infinity::opencl

#endif
