// In place of topk.cu where there is no CUDA compiler.
#include "topk_cuda.hpp"

namespace smart_infinity::cuda {

std::string unavailable_reason() { return "built without CUDA: needs nvcc, then build again"; }

void topk_encode(int, std::uintptr_t, const float*, std::size_t, std::size_t, Dtype, std::byte*,
                 float*) {
  throw Error(ErrorKind::environment, "no CUDA: " + unavailable_reason());
}

}  // namespace smart_infinity::cuda
