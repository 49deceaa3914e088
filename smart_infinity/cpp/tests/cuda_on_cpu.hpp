// CUDA's words for cuda/topk_kernels.cuh, so that a test runs its kernels on the processor: one
// thread for each of a block's, and one block after the other. What a kernel forgets to wait for is
// a data race here too, which ThreadSanitizer finds.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#define SMART_INFINITY_CUDA_THREADS 8
#define __global__ [[maybe_unused]] static
#define __device__
#define __shared__ static

namespace smart_infinity::cuda {

struct Index {
  std::uint32_t x = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline Index gridDim;
inline std::barrier<> all_threads{SMART_INFINITY_CUDA_THREADS};

inline void __syncthreads() { all_threads.arrive_and_wait(); }

inline void atomicAdd(std::uint32_t* sum, std::uint32_t more) {
  std::atomic_ref(*sum).fetch_add(more, std::memory_order_relaxed);
}

struct LaunchHere {
  template <class... Parameters, class... Arguments>
  void operator()(std::uint32_t blocks, void (*kernel)(Parameters...), Arguments... arguments) {
    gridDim.x = blocks;
    std::vector<std::jthread> threads;
    for (std::uint32_t thread = 0; thread < SMART_INFINITY_CUDA_THREADS; ++thread) {
      threads.emplace_back([=] {
        threadIdx.x = thread;
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
          kernel(arguments...);
          __syncthreads();  // what a block shares is the next one's
        }
      });
    }
  }
};

}  // namespace smart_infinity::cuda
