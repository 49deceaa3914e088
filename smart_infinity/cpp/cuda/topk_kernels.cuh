// Exact top-k in the order and the bytes of topk.cpp, as kernels and the order in which they run.
// Radix selection finds the k-th largest magnitude; then every chunk counts what it keeps, a scan
// says where that begins, and every chunk writes its own: no sort, and no atomics that decide
// order.
//
// Nothing here is CUDA's but __global__, __shared__, __syncthreads, atomicAdd and the indices of
// threads, so that a test can run it on a processor (tests/cuda_on_cpu.hpp). How a kernel is
// started is the caller's: `launch(blocks, kernel, arguments...)`, always kThreads threads a block.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "../half.hpp"
#include "../types.hpp"

namespace smart_infinity::cuda {

#ifndef SMART_INFINITY_CUDA_THREADS
#define SMART_INFINITY_CUDA_THREADS 256
#endif
inline constexpr std::uint32_t kThreads = SMART_INFINITY_CUDA_THREADS;
inline constexpr std::uint32_t kEach = 8;  // entries of a thread, one after the other
inline constexpr std::uint32_t kChunk = kThreads * kEach;
inline constexpr std::uint32_t kBlock = 65536;  // entries that share a count
inline constexpr std::uint32_t kBins = 2048;
static_assert(kBlock % kChunk == 0 && kBins / 2 % kThreads == 0);

// The k-th largest magnitude as far as it is known: its bits under `decided`. `wanted` of the
// entries that have these bits are among the k largest.
struct Selection {
  std::uint32_t prefix, decided, wanted;
};

// Of a chunk: entries above the threshold and entries of the threshold's very magnitude. First its
// own, then of all chunks before it.
struct Counts {
  std::uint32_t above, equal;
};

// Device memory for `encode`; all of it zero at the beginning.
struct Workspace {
  Selection* selection;
  std::uint32_t* bins;  // kBins
  Counts* chunks;       // chunks_of(n) + 1
};

constexpr std::uint32_t chunks_of(std::size_t n) {
  return static_cast<std::uint32_t>((n + kChunk - 1) / kChunk);
}

// Where the parts of an encoding begin; the counts are at 0.
struct Places {
  std::size_t indices, values;
};

constexpr std::uint32_t magnitude_of(float value) {
  return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU;
}

// ------------------------------------------------------------------ selection

__global__ void add(float* sum, const float* more, std::size_t n) {
  const std::size_t stride = std::size_t{kThreads} * gridDim.x;
  for (std::size_t i = blockIdx.x * kThreads + threadIdx.x; i < n; i += stride) sum[i] += more[i];
}

// Counts, by the next `bits` bits, the magnitudes that have what is known of the threshold.
__global__ void count_digits(const float* values, std::size_t n, const Selection* selection,
                             std::uint32_t shift, std::uint32_t bits, std::uint32_t* bins) {
  __shared__ std::uint32_t own[kBins];
  for (std::uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) own[bin] = 0;
  __syncthreads();
  const std::uint32_t prefix = selection->prefix, decided = selection->decided;
  const std::uint32_t mask = (1U << bits) - 1;
  const std::size_t stride = std::size_t{kThreads} * gridDim.x;
  for (std::size_t i = blockIdx.x * kThreads + threadIdx.x; i < n; i += stride) {
    const std::uint32_t magnitude = magnitude_of(values[i]);
    if ((magnitude & decided) == prefix) atomicAdd(&own[(magnitude >> shift) & mask], 1U);
  }
  __syncthreads();
  for (std::uint32_t bin = threadIdx.x; bin <= mask; bin += kThreads) {
    if (own[bin] > 0) atomicAdd(&bins[bin], own[bin]);
  }
}

// Gives each thread the sum of what the threads before it, in reverse those behind it, have put in;
// `all` has kThreads places. Every thread of the block calls it.
template <bool reverse>
__device__ std::uint32_t sum_before(std::uint32_t* all, std::uint32_t own) {
  const std::uint32_t at = reverse ? kThreads - 1 - threadIdx.x : threadIdx.x;
  all[at] = own;
  __syncthreads();
  for (std::uint32_t reach = 1; reach < kThreads; reach *= 2) {
    const std::uint32_t before = at >= reach ? all[at - reach] : 0;
    __syncthreads();
    all[at] += before;
    __syncthreads();
  }
  const std::uint32_t sum = all[at] - own;
  __syncthreads();
  return sum;
}

// Finds the digit at which, from the largest down, `wanted` are reached; clears the bins. One
// block.
__global__ void choose_digit(Selection* selection, std::uint32_t shift, std::uint32_t bits,
                             std::uint32_t* bins, std::uint32_t k) {
  __shared__ std::uint32_t sums[kThreads];
  const std::uint32_t each = (1U << bits) / kThreads;
  const std::uint32_t first = threadIdx.x * each;
  const std::uint32_t wanted = selection->decided == 0 ? k : selection->wanted;
  std::uint32_t own = 0;
  for (std::uint32_t bin = first; bin < first + each; ++bin) own += bins[bin];
  std::uint32_t above = sum_before<true>(sums, own);
  if (above < wanted && wanted <= above + own) {  // one thread's
    std::uint32_t digit = first + each - 1;
    while (above + bins[digit] < wanted) above += bins[digit--];
    selection->prefix |= digit << shift;
    selection->decided |= ((1U << bits) - 1) << shift;
    selection->wanted = wanted - above;
  }
  for (std::uint32_t bin = first; bin < first + each; ++bin) bins[bin] = 0;
}

// ------------------------------------------------------------------ output

// Of thread t's entries of a chunk: above the threshold in the low half, at it in the high one.
__device__ inline std::uint32_t count_own(const float* values, std::size_t begin, std::size_t n,
                                          std::uint32_t threshold) {
  std::uint32_t found = 0;
  for (std::size_t i = begin; i < begin + kEach && i < n; ++i) {
    const std::uint32_t magnitude = magnitude_of(values[i]);
    found += magnitude > threshold ? 1U : 0U;
    found += magnitude == threshold ? 1U << 16 : 0U;
  }
  return found;
}

// A block a chunk.
__global__ void count_chunks(const float* values, std::size_t n, const Selection* selection,
                             Counts* chunks) {
  __shared__ std::uint32_t total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const std::size_t begin = std::size_t{blockIdx.x} * kChunk + threadIdx.x * kEach;
  const std::uint32_t own = count_own(values, begin, n, selection->prefix);
  if (own > 0) atomicAdd(&total, own);
  __syncthreads();
  if (threadIdx.x == 0) chunks[blockIdx.x] = {total & 0xFFFFU, total >> 16};
}

// Entries kept before a place that has so many entries above and at the threshold before it.
__device__ inline std::uint32_t kept_before(Counts before, std::uint32_t wanted) {
  return before.above + (before.equal < wanted ? before.equal : wanted);
}

// Turns chunks' counts into those of all chunks before, and writes the counts of blocks. One block.
__global__ void place_chunks(Counts* chunks, std::uint32_t count, const Selection* selection,
                             std::uint32_t* block_counts, std::uint32_t blocks,
                             std::uint16_t* padding) {
  __shared__ std::uint32_t sums[kThreads];
  __shared__ Counts carry;
  if (threadIdx.x == 0) carry = {0, 0};
  __syncthreads();
  for (std::uint32_t begin = 0; begin <= count; begin += kThreads) {  // one behind the last too
    const std::uint32_t at = begin + threadIdx.x;
    const Counts own = at < count ? chunks[at] : Counts{0, 0};
    const Counts before = carry;
    const std::uint32_t above = before.above + sum_before<false>(sums, own.above);
    const std::uint32_t equal = before.equal + sum_before<false>(sums, own.equal);
    if (at <= count) chunks[at] = {above, equal};
    if (threadIdx.x == kThreads - 1) carry = {above + own.above, equal + own.equal};
    __syncthreads();
  }
  const std::uint32_t wanted = selection->wanted;
  constexpr std::uint32_t kChunks = kBlock / kChunk;
  for (std::uint32_t block = threadIdx.x; block < blocks; block += kThreads) {
    const std::uint32_t end = (block + 1) * kChunks < count ? (block + 1) * kChunks : count;
    block_counts[block] =
        kept_before(chunks[end], wanted) - kept_before(chunks[block * kChunks], wanted);
  }
  if (threadIdx.x == 0 && padding != nullptr) *padding = 0;
}

// A block a chunk. What is written to `residual` may be `values` itself.
__global__ void write_chunks(const float* values, std::size_t n, const Selection* selection,
                             const Counts* chunks, Dtype type, std::uint16_t* indices, void* sent,
                             float* residual) {
  __shared__ std::uint32_t sums[kThreads];
  const std::uint32_t threshold = selection->prefix, wanted = selection->wanted;
  const std::size_t begin = std::size_t{blockIdx.x} * kChunk + threadIdx.x * kEach;
  const std::uint32_t before = sum_before<false>(sums, count_own(values, begin, n, threshold));
  Counts here = chunks[blockIdx.x];
  here.above += before & 0xFFFFU;
  here.equal += before >> 16;
  for (std::size_t i = begin; i < begin + kEach && i < n; ++i) {
    const float value = values[i];
    const std::uint32_t magnitude = magnitude_of(value);
    if (magnitude < threshold) continue;
    const std::uint32_t place = kept_before(here, wanted);
    if (magnitude == threshold) {
      if (here.equal++ >= wanted) continue;
    } else {
      ++here.above;
    }
    indices[place] = static_cast<std::uint16_t>(i % kBlock);
    float decoded = value;
    if (type == Dtype::float32) {
      static_cast<float*>(sent)[place] = value;
    } else {
      const bool brain = type == Dtype::bfloat16;
      const std::uint16_t half = brain ? float_to_bf16(value) : float_to_f16(value);
      static_cast<std::uint16_t*>(sent)[place] = half;
      decoded = brain ? bf16_to_float(half) : f16_to_float(half);
    }
    if (residual != nullptr) residual[i] = value - decoded;
  }
}

// ------------------------------------------------------------------ all of it

// Encodes k of n entries into `encoded`, in device memory, whose parts begin at `places`.
template <class Launch>
void encode(Launch&& launch, const float* gradient, std::size_t n, std::uint32_t k, Dtype type,
            std::byte* encoded, Places places, float* residual, const Workspace& w) {
  const std::uint32_t chunks = chunks_of(n);
  const std::uint32_t some = chunks < 1024 ? chunks : 1024;  // blocks that share all entries
  const float* values = gradient;
  if (residual != nullptr) {
    launch(some, add, residual, gradient, n);
    values = residual;
  }
  struct Pass {
    std::uint32_t shift, bits;
  };
  for (const Pass pass : {Pass{20, 11}, Pass{10, 10}, Pass{0, 10}}) {
    launch(some, count_digits, values, n, static_cast<const Selection*>(w.selection), pass.shift,
           pass.bits, w.bins);
    launch(1U, choose_digit, w.selection, pass.shift, pass.bits, w.bins, k);
  }
  const Selection* selection = w.selection;
  auto* counts = reinterpret_cast<std::uint32_t*>(encoded);
  auto* indices = reinterpret_cast<std::uint16_t*>(encoded + places.indices);
  std::uint16_t* padding = k % 2 == 1 ? indices + k : nullptr;
  const auto blocks = static_cast<std::uint32_t>((n + kBlock - 1) / kBlock);
  launch(chunks, count_chunks, values, n, selection, w.chunks);
  launch(1U, place_chunks, w.chunks, chunks, selection, counts, blocks, padding);
  launch(chunks, write_chunks, values, n, selection, static_cast<const Counts*>(w.chunks), type,
         indices, static_cast<void*>(encoded + places.values), residual);
}

}  // namespace smart_infinity::cuda
