#pragma once
// What kernels need whose blocks wait for one another while all of them are on the GPU (Queue::run_together): values
// from block to block, copies into shared memory that go on meanwhile, and shared memory of a size that the launch
// chooses. tests/cuda_on_host has its own, in which every block runs in turns and copies are done when somebody waits.
#include <cstdint>

#if defined(__CUDACC__)
namespace aisec_fast::cuda {
namespace {

// Machine code for which architectures has all of this: others must not be launched.
constexpr int together_from = 90;

__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

__device__ inline unsigned shared_place(const void* address) {
  return static_cast<unsigned>(__cvta_generic_to_shared(address));
}

// What copies that go on by themselves are waited for by, in shared memory: it has phases, of which each is over when
// its bytes have been announced and have come.
struct Arrivals {
  std::uint64_t state;
};

// By one thread, before the block's next barrier.
__device__ inline void prepare(Arrivals& arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_place(&arrivals)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}

// Once a phase; what this thread did before is seen by those that wait.
__device__ inline void announce(Arrivals& arrivals, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_place(&arrivals)), "r"(bytes)
               : "memory");
#endif
}

// Copies `bytes` from memory to shared memory; both addresses and `bytes` are multiples of 16.
__device__ inline void bring(void* to, const void* from, unsigned bytes, Arrivals& arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_place(to)),
      "l"(from), "r"(bytes), "r"(shared_place(&arrivals))
      : "memory");
#endif
}

// Waits until a phase is over; phases are counted from 0, and this is not called later than in the next one.
__device__ inline void wait_for_arrivals(Arrivals& arrivals, unsigned phase) {
#if __CUDA_ARCH__ >= 900
  unsigned over = 0;
  while (over == 0)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(shared_place(&arrivals)), "r"(phase % 2)
                 : "memory");
#endif
}

// A value for another block, which looks again as long as the memory is unpublished: filled with bytes of 0xff. So a
// value is its own signal; every NaN is published as another one than those bytes.
__device__ inline void publish(double* place, double value) {
  if (value != value) value = __longlong_as_double(0x7ff8000000000000);
  asm volatile("st.relaxed.gpu.global.f64 [%0], %1;" ::"l"(place), "d"(value) : "memory");
}
__device__ inline double published(const double* place) {
  double value;
  asm volatile("ld.relaxed.gpu.global.f64 %0, [%1];" : "=d"(value) : "l"(place) : "memory");
  return value;
}
__device__ inline bool is_unpublished(double value) { return __double_as_longlong(value) == -1; }
// Looking again, where a value is not there yet.
__device__ inline void look_again() {}

}  // namespace
}  // namespace aisec_fast::cuda
#endif
