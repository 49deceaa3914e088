// SmartComp on a GPU: the twin of topk::encode, with the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../types.hpp"

namespace smart_infinity::cuda {

// Why there is no GPU to encode on: the build, the driver or the machine; empty where there is one.
std::string unavailable_reason();

// As topk::encode. `gradient` and, unless null, `residual` are n floats in the memory of GPU
// `device`, or such as it can reach; `out` is the host's, of topk::encoded_bytes(). The work goes
// on `stream` (a cudaStream_t; 0 is the default one) behind what is there already, and has ended on
// return. What memory it needs is taken from the stream's pool and given back: 4 bytes an entry
// that is kept, and little else. Error(environment) when CUDA fails.
void topk_encode(int device, std::uintptr_t stream, const float* gradient, std::size_t n,
                 std::size_t k, Dtype values, std::byte* out, float* residual);

}  // namespace smart_infinity::cuda
