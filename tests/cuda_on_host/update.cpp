// The CUDA kernels of the optimizers' steps and their launches, compiled by g++, for ctypes (update.py) and for
// check_update.cpp.
#include "update.cu"

#include "entry.hpp"
#include "update_entry.hpp"

using namespace aisec_fast;

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

const char* noisy_mean(int type, const UpdateItem* items, std::size_t count, double divisor) {
  return report([&] { return cuda::noisy_mean(static_cast<DType>(type), {items, items + count}, divisor, nullptr); });
}

const char* sgd_step(int type, const UpdateItem* items, std::size_t count, const SgdStep* step) {
  return report([&] { return cuda::sgd_step(static_cast<DType>(type), {items, items + count}, *step, nullptr); });
}

const char* adam_step(int type, const UpdateItem* items, std::size_t count, const AdamStep* step) {
  return report([&] { return cuda::adam_step(static_cast<DType>(type), {items, items + count}, *step, nullptr); });
}

}  // extern "C"
