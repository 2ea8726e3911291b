// Kernels with one fault each: the shim must report it. test_cuda_on_host.py calls them.
#include "entry.hpp"

using namespace aisec_fast::cuda;

namespace {

const char* run(void (*kernel)(unsigned*), unsigned threads, bool together = false) {
  alignas(16) static unsigned values[1024];
  return report([&] {
    cudaLaunchAttribute attribute{cudaLaunchAttributeCooperative, {1}};
    cudaLaunchConfig_t launch{dim3(2), dim3(threads), 1024, nullptr, &attribute, together ? 1u : 0u};
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
// One block waits for what the other never does.
void nobody_publishes(unsigned* values) {
  auto* const place = reinterpret_cast<double*>(values);
  if (threadIdx.x == 0 && blockIdx.x == 0) memset(values, 0xff, 16);
  __syncthreads();
  while (blockIdx.x == 1 && is_unpublished(published(place))) look_again();
}
void nothing_announced(unsigned* values) {
  auto* const arrivals = reinterpret_cast<Arrivals*>(dynamic_shared());
  if (threadIdx.x == 0) prepare(*arrivals);
  __syncthreads();
  if (threadIdx.x == 0) bring(dynamic_shared() + 64, values, 32, *arrivals);
  wait_for_arrivals(*arrivals, 0);
}
void other_bytes(unsigned* values) {
  auto* const arrivals = reinterpret_cast<Arrivals*>(dynamic_shared());
  if (threadIdx.x == 0) prepare(*arrivals);
  __syncthreads();
  if (threadIdx.x == 0) {
    announce(*arrivals, 48);
    bring(dynamic_shared() + 64, values, 32, *arrivals);
  }
  wait_for_arrivals(*arrivals, 0);
}
void not_in_sixteens(unsigned* values) {
  bring(dynamic_shared() + 64, values + 1, 32, *reinterpret_cast<Arrivals*>(dynamic_shared()));
}
void sound_together(unsigned* values) {
  auto* const place = reinterpret_cast<double*>(values) + 200;
  auto* const arrivals = reinterpret_cast<Arrivals*>(dynamic_shared());
  if (blockIdx.x == 0 && threadIdx.x == 0) values[0] = 7;
  if (threadIdx.x == 0) prepare(*arrivals);
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) publish(place, 3.0);
  while (published(place) != 3.0) look_again();
  if (threadIdx.x == 0) {
    announce(*arrivals, 16);
    bring(dynamic_shared() + 64, values, 16, *arrivals);
  }
  wait_for_arrivals(*arrivals, 0);
  if (*reinterpret_cast<const unsigned*>(dynamic_shared() + 64) != 7)
    host_cuda::Machine::get().fault("not what was brought");
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
const char* fault_nobody_publishes() { return run(nobody_publishes, 64, true); }
const char* fault_nothing_announced() { return run(nothing_announced, 64); }
const char* fault_other_bytes() { return run(other_bytes, 64); }
const char* fault_not_in_sixteens() { return run(not_in_sixteens, 64); }
const char* fault_none_together() { return run(sound_together, 64, true); }
const char* fault_none() { return run(sound, 64); }
}
