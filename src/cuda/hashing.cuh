#pragma once
// BLAKE3 of data on the GPU into a state on the host, as src/cpp/hashing.hpp does it for data on the host.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace aisec_fast::cuda {

// `data` is device memory of the current device. Waits for the result; the state is unchanged if there was an error.
cudaError_t blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size, cudaStream_t stream);
// All in host memory; here so that the state's owner needs no other module.
void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek);

}  // namespace aisec_fast::cuda
