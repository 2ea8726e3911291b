#pragma once
// Clipping on the GPU: what src/cpp/clipping.hpp declares for the CPU. Pointers, those in `batch` too, are device
// memory of the current device; the work is queued on `stream`.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "clipping.hpp"

namespace aisec_fast::cuda {

cudaError_t row_norms(const Batch& batch, double* norms, cudaStream_t stream);
cudaError_t weighted_sum(const Batch& batch, const double* weights, const std::vector<void*>& outs,
                         cudaStream_t stream);
cudaError_t clip_and_sum(const Batch& batch, double max_norm, const std::vector<void*>& outs, double* norms,
                         cudaStream_t stream);
cudaError_t lattice_sum(const Batch& batch, double max_norm, double granularity, std::int64_t limit,
                        const std::vector<std::int64_t*>& outs, double* norms, cudaStream_t stream);

}  // namespace aisec_fast::cuda
