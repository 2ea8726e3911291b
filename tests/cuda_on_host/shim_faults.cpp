// Kernels with one fault each: the shim must report it. test_cuda_on_host.py calls them.
#include "entry.hpp"

namespace {

const char* run(void (*kernel)(unsigned*), unsigned threads) {
  static unsigned values[1024];
  return report([&] {
    cudaLaunchConfig_t launch{dim3(2), dim3(threads), nullptr};
    return cudaLaunchKernelEx(&launch, kernel, &values[0]);
  });
}

void barrier_in_a_branch(unsigned*) {
  if (threadIdx.x < 40) __syncthreads();
}
void two_barriers(unsigned*) {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncthreads();
}
void lone_shuffle(unsigned* values) {
  if (threadIdx.x < 16) values[threadIdx.x] = __shfl_down_sync(0xffffffffu, threadIdx.x, 1);
}
void shuffle_from_outside(unsigned* values) {
  if (threadIdx.x < 16) values[threadIdx.x] = __shfl_down_sync(0xffffu, threadIdx.x, 1);
}
void sound(unsigned* values) {
  __shared__ unsigned shared[64];
  shared[threadIdx.x] = __shfl_down_sync(0xffffffffu, threadIdx.x, 1);
  __syncthreads();
  values[threadIdx.x] = shared[63 - threadIdx.x];
}

}  // namespace

extern "C" {
const char* fault_barrier_in_a_branch() { return run(barrier_in_a_branch, 64); }
const char* fault_two_barriers() { return run(two_barriers, 64); }
const char* fault_lone_shuffle() { return run(lone_shuffle, 64); }
const char* fault_shuffle_from_outside() { return run(shuffle_from_outside, 64); }
const char* fault_none() { return run(sound, 64); }
}
