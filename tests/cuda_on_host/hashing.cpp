// The CUDA BLAKE3 kernels and their launches, compiled by g++, for ctypes (hashing.py) and for check_hashing.cpp.
#include "hashing.cu"

#include "entry.hpp"
#include "hashing_entry.hpp"

using namespace aisec_fast;

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

const char* blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size) {
  return report([&] { return cuda::blake3_update(state, data, size, nullptr); });
}

const char* blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek) {
  return report([&] {
    cuda::blake3_output(state, out, size, seek);
    return cudaSuccess;
  });
}

}  // extern "C"
