#pragma once
// The adversarial steps on the GPU. Pointers are device memory of the current device; the work is queued on `stream`.
#include <cuda_runtime_api.h>

#include <cstddef>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast::cuda {

// Arrays [rows, step.columns] of float32 or float64; out may be adv.
cudaError_t linf_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream);
cudaError_t l2_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream);
cudaError_t l1_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream);
cudaError_t l0_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream);

}  // namespace aisec_fast::cuda
