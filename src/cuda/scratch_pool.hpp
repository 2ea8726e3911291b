#pragma once
// Where scratch memory comes from: one pool of ours for each GPU, which lives as long as the process. The device's
// default pool gives everything back to the driver whenever someone waits for the GPU, and getting it again costs more
// than most kernels; to make that pool keep memory would change it for everyone in the process.
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>

namespace aisec_fast::cuda {

constexpr std::uint64_t scratch_kept = std::uint64_t{64} << 20;  // bytes of a GPU that stay with us between calls

// The pool of a GPU, made at its first use. Threads may call it at once.
inline cudaError_t scratch_pool(int device, cudaMemPool_t& pool) {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) {
    pool = found->second;
    return cudaSuccess;
  }
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaError_t status = cudaMemPoolCreate(&pool, &properties);
  if (status != cudaSuccess) return status;
  std::uint64_t kept = scratch_kept;
  status = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
  if (status == cudaSuccess)
    pools.emplace(device, pool);
  else
    cudaMemPoolDestroy(pool);
  return status;
}

}  // namespace aisec_fast::cuda
