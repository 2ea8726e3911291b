#pragma once
// Noise and an optimizer's step on the GPU, a launch for each array. Pointers are device memory of the current device;
// the work is queued on `stream`.
#include <cuda_runtime_api.h>

#include <vector>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast::cuda {

// float32 or float64.
cudaError_t noisy_mean(DType type, const std::vector<UpdateItem>& items, double divisor, cudaStream_t stream);
cudaError_t sgd_step(DType type, const std::vector<UpdateItem>& items, const SgdStep& step, cudaStream_t stream);
cudaError_t adam_step(DType type, const std::vector<UpdateItem>& items, const AdamStep& step, cudaStream_t stream);

}  // namespace aisec_fast::cuda
