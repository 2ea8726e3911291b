// The CUDA kernels of the adversarial steps and their launches, compiled by g++, for ctypes (adversarial.py) and for
// check_adversarial.cpp.
#include "adversarial.cu"

#include "adversarial_entry.hpp"
#include "entry.hpp"

using namespace aisec_fast;

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

const char* linf_step(int type, std::size_t rows, const AdversarialStep* step) {
  return report([&] { return cuda::linf_step(static_cast<DType>(type), rows, *step, nullptr); });
}

const char* l2_step(int type, std::size_t rows, const AdversarialStep* step) {
  return report([&] { return cuda::l2_step(static_cast<DType>(type), rows, *step, nullptr); });
}

const char* l1_step(int type, std::size_t rows, const AdversarialStep* step) {
  return report([&] { return cuda::l1_step(static_cast<DType>(type), rows, *step, nullptr); });
}

const char* l0_step(int type, std::size_t rows, const AdversarialStep* step) {
  return report([&] { return cuda::l0_step(static_cast<DType>(type), rows, *step, nullptr); });
}

}  // extern "C"
