#pragma once
// Stands in for the CUDA runtime when g++ compiles our .cu files: two GPUs of a few processors, memory from malloc, and
// every stream runs its work at once. It notes where the work went.
#include <cstdlib>

#include "cuda_on_host.hpp"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorCooperativeLaunchTooLarge };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaMemcpyKind { cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace host_cuda {
constexpr int devices = 2;
inline std::size_t allocations = 0;  // not yet freed
inline int device = 0;               // the current one
inline int last_device = -1;         // of the last kernel, and its stream
inline cudaStream_t last_stream = nullptr;
constexpr std::size_t shared_bytes = 227 << 10;  // that a block may have
inline unsigned processors = 1;                  // of each device
inline unsigned most_blocks = ~0u;               // that a device holds at once
inline int architecture = 90;                    // that kernels are built for
inline unsigned together = 0;                    // launches of blocks that wait for one another
inline unsigned waits = 0;                       // calls that waited for a stream
inline bool recording = false;                   // a graph, on this stream
inline cudaStream_t recorded = nullptr;
}  // namespace host_cuda

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = host_cuda::devices;
  return cudaSuccess;
}

struct cudaDeviceProp {
  char name[256];
};

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "stand-in");
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = host_cuda::device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= host_cuda::devices) return cudaErrorInvalidValue;
  host_cuda::device = device;
  return cudaSuccess;
}

inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(host_cuda::processors);
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(host_cuda::shared_bytes);
      break;
  }
  return cudaSuccess;
}

struct cudaFuncAttributes {
  int ptxVersion;
};

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = host_cuda::architecture;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return static_cast<std::size_t>(bytes) <= host_cuda::shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}

using cudaMemPool_t = int*;  // which device's it is
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };

struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  struct {
    cudaMemLocationType type;
    int id;
  } location;
};

inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  static int pools[host_cuda::devices];
  const int device = properties->location.id;
  if (device < 0 || device >= host_cuda::devices) return cudaErrorInvalidValue;
  pools[device] = device;
  *pool = &pools[device];
  return cudaSuccess;
}

inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
inline cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }

// Fresh memory is NaN to double, or zero: code that forgets to set it must be wrong with one of them.
inline cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool, cudaStream_t) {
  if (bytes == 0 || *pool != host_cuda::device) return cudaErrorInvalidValue;
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

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++host_cuda::waits;
  return cudaSuccess;
}

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool is = host_cuda::recording && stream == host_cuda::recorded;
  *status = is ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* launch, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (launch->gridDim.x == 0 || launch->blockDim.x == 0 || launch->blockDim.x > 1024) return cudaErrorInvalidValue;
  host_cuda::last_device = host_cuda::device;
  host_cuda::last_stream = launch->stream;
  const bool together = launch->numAttrs > 0 && launch->attrs[0].val.cooperative != 0;
  if (together && launch->gridDim.x > host_cuda::most_blocks) return cudaErrorCooperativeLaunchTooLarge;
  host_cuda::together += together ? 1 : 0;
  host_cuda::Machine::get().launch(launch->gridDim.x, launch->blockDim.x, launch->dynamicSmemBytes, together,
                                   [&] { kernel(arguments...); });
  return cudaSuccess;
}
