#pragma once
// Stands in for the CUDA runtime when g++ compiles our .cu files: one GPU with one processor, memory from malloc, and
// every stream runs its work at once.
#include <cstdlib>

#include "cuda_on_host.hpp"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

namespace host_cuda {
inline std::size_t allocations = 0;  // not yet freed
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}

// Fresh memory is NaN to double, or zero: code that forgets to set it must be wrong with one of them.
inline cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) {
  if (bytes == 0) return cudaErrorInvalidValue;
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, host_cuda::order == 0 ? 0xff : 0, bytes);
  ++host_cuda::allocations;
  return cudaSuccess;
}

inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  std::free(memory);
  --host_cuda::allocations;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int byte, std::size_t bytes, cudaStream_t) {
  std::memset(memory, byte, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* launch, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (launch->gridDim.x == 0 || launch->blockDim.x == 0 || launch->blockDim.x > 1024) return cudaErrorInvalidValue;
  host_cuda::Machine::get().launch(launch->gridDim.x, launch->blockDim.x, [&] { kernel(arguments...); });
  return cudaSuccess;
}
