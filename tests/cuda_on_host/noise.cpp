// The CUDA noise kernels and their launches, compiled by g++, for ctypes (noise.py) and for check_noise.cpp.
#include "noise.cu"

#include "entry.hpp"
#include "noise_entry.hpp"

using namespace aisec_fast;

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

const char* add_gaussian(int x_type, const void* x, int out_type, void* out, std::size_t count, const NoiseCall* call) {
  return report([&] {
    return cuda::add_gaussian(static_cast<DType>(x_type), x, static_cast<DType>(out_type), out, count, *call, nullptr);
  });
}

const char* add_laplace(int type, const void* x, void* out, std::size_t count, const NoiseCall* call) {
  return report([&] { return cuda::add_laplace(static_cast<DType>(type), x, out, count, *call, nullptr); });
}

const char* add_laplace_from(const float* x, float* out, std::uint64_t first, std::uint64_t count,
                             const NoiseCall* call) {
  return report([&] {
    const std::uint64_t block = first / group_samples * group_blocks;
    host_cuda::Machine::get().launch(1, cuda::block_threads, [&] {
      cuda::for_noisy_values<Law::laplace, float>({block + threadIdx.x, cuda::block_threads}, x - first, count, *call,
                                                  [&](std::uint64_t i, float value) { out[i - first] = value; });
    });
    return cudaSuccess;
  });
}

const char* add_float(int law, int type, const void* x, void* out, std::size_t count, const NoiseCall* call) {
  return report(
      [&] { return cuda::add_float(static_cast<Law>(law), static_cast<DType>(type), x, out, count, *call, nullptr); });
}

const char* random_words(std::uint64_t* out, std::size_t count, const NoiseCall* call, std::uint32_t domain) {
  return report([&] { return cuda::random_words(out, count, *call, domain, nullptr); });
}

const char* first_unfit(int type, const void* x, std::size_t count, double granularity, std::size_t* first) {
  return report([&] { return cuda::first_unfit(static_cast<DType>(type), x, count, granularity, *first, nullptr); });
}

}  // extern "C"
