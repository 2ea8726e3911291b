#pragma once
// Norms of per-sample gradients on the GPU: what src/cpp/ghost.hpp declares for the CPU. Pointers are device memory of
// the current device; the work is queued on `stream`.
#include <cuda_runtime_api.h>

#include <cstddef>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast::cuda {

cudaError_t gram_squares(const GramShape& shape, std::size_t batch, const float* inputs, const float* outputs,
                         double* squares, double* bounds, cudaStream_t stream);
cudaError_t conv_gram_squares(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient,
                              double* squares, double* bounds, cudaStream_t stream);
cudaError_t conv_rows(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient,
                      float* rows, double* squares, double* bounds, cudaStream_t stream);

}  // namespace aisec_fast::cuda
