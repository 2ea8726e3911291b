#pragma once
// Noise on the GPU. Pointers are device memory of the current device; the work is queued on `stream`.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "aisec_fast/kernels.hpp"
#include "aisec_fast/quantiles.hpp"

namespace aisec_fast::cuda {

// x: float32 or float64 and out the same (they may be one array), or x int64 lattice integers and out float32 or
// float64.
cudaError_t add_gaussian(DType x_type, const void* x, DType out_type, void* out, std::size_t count,
                         const NoiseCall& call, cudaStream_t stream);
cudaError_t add_laplace(DType type, const void* x, void* out, std::size_t count, const NoiseCall& call,
                        cudaStream_t stream);
// Float mode; x and out are float32 or float64.
cudaError_t add_float(Law law, DType type, const void* x, void* out, std::size_t count, const NoiseCall& call,
                      cudaStream_t stream);
// Only the call's key is used.
cudaError_t random_words(std::uint64_t* out, std::size_t count, const NoiseCall& call, std::uint32_t domain,
                         cudaStream_t stream);
// Waits for the answer; `first` = count if all fit.
cudaError_t first_unfit(DType type, const void* x, std::size_t count, double granularity, std::size_t& first,
                        cudaStream_t stream);

}  // namespace aisec_fast::cuda
