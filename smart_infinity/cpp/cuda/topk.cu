#include <cuda_runtime.h>

#include <algorithm>

#include "../topk.hpp"
#include "topk_cuda.hpp"
#include "topk_kernels.cuh"

namespace smart_infinity::cuda {
namespace {

static_assert(kBlock == topk::kBlock);

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw Error(ErrorKind::environment,
              std::string("CUDA: ") + call + ": " + cudaGetErrorString(status));
}

// The device is what it was when this goes.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

// Memory of the stream's pool, from here to the end of what is queued.
class Pooled {
 public:
  Pooled(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
    check(cudaMallocAsync(&memory_, bytes, stream), "cudaMallocAsync");
  }
  Pooled(const Pooled&) = delete;
  Pooled& operator=(const Pooled&) = delete;
  ~Pooled() { cudaFreeAsync(memory_, stream_); }
  std::byte* at(std::size_t offset) const { return static_cast<std::byte*>(memory_) + offset; }

 private:
  void* memory_ = nullptr;
  cudaStream_t stream_;
};

struct Launch {
  cudaStream_t stream;
  template <class... Parameters, class... Arguments>
  void operator()(std::uint32_t blocks, void (*kernel)(Parameters...), Arguments... arguments) {
    kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
    check(cudaGetLastError(), "a kernel's launch");
  }
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // it is told here, and not to whoever asks next
    return cudaGetErrorString(status);
  }
  return count == 0 ? "no NVIDIA GPU" : "";
}

void topk_encode(int device, std::uintptr_t stream, const float* gradient, std::size_t n,
                 std::size_t k, Dtype values, std::byte* out, float* residual) {
  if (n > std::size_t{1} << 31) {
    throw Error(ErrorKind::bad_input, std::to_string(n) + " entries: at most 2^31 at once");
  }
  if (n == 0 || k == 0) {
    std::fill_n(out, topk::encoded_bytes(n, 0, values), std::byte{0});
    return;
  }
  const OnDevice here(device);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  const std::size_t bytes = topk::encoded_bytes(n, k, values);
  const std::size_t at_bins = aligned(sizeof(Selection));
  const std::size_t at_chunks = at_bins + kBins * sizeof(std::uint32_t);
  const std::size_t at_encoded = aligned(at_chunks + (chunks_of(n) + 1) * sizeof(Counts));
  const Pooled memory(at_encoded + bytes, queue);
  check(cudaMemsetAsync(memory.at(0), 0, at_encoded, queue), "cudaMemsetAsync");
  const std::size_t values_at = bytes - k * bytes_of(values);
  const Places places{(n + kBlock - 1) / kBlock * 4, values_at};
  const Workspace workspace{reinterpret_cast<Selection*>(memory.at(0)),
                            reinterpret_cast<std::uint32_t*>(memory.at(at_bins)),
                            reinterpret_cast<Counts*>(memory.at(at_chunks))};
  encode(Launch{queue}, gradient, n, static_cast<std::uint32_t>(k), values, memory.at(at_encoded),
         places, residual, workspace);
  check(cudaMemcpyAsync(out, memory.at(at_encoded), bytes, cudaMemcpyDeviceToHost, queue),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(queue), "cudaStreamSynchronize");
}

}  // namespace smart_infinity::cuda
