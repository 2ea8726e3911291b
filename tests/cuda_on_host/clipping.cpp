// The CUDA clipping kernels and their launches, compiled by g++, for ctypes (clipping.py) and for check_clipping.cpp.
#include "clipping.cu"

#include "clipping_entry.hpp"
#include "entry.hpp"

using namespace aisec_fast;

namespace {

Batch batch(const CBatch& call) {
  return {static_cast<DType>(call.dtype), call.rows, {call.arrays, call.arrays + call.count}};
}

template <class T>
std::vector<T*> pointers(const CBatch& call, T* const* outs) {
  return {outs, outs + call.count};
}

}  // namespace

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

// Of the GPU; how many launches of blocks together there have been.
unsigned set_processors(unsigned processors, unsigned most_blocks, int architecture) {
  host_cuda::processors = processors;
  host_cuda::most_blocks = most_blocks;
  host_cuda::architecture = architecture;
  return host_cuda::together;
}

const char* norms(const CBatch* call, double* norms) {
  return report([&] { return cuda::row_norms(batch(*call), norms, nullptr); });
}

const char* weighted_sum(const CBatch* call, const double* weights, void* const* outs) {
  return report([&] { return cuda::weighted_sum(batch(*call), weights, pointers(*call, outs), nullptr); });
}

const char* clip_and_sum(const CBatch* call, double max_norm, void* const* outs, double* norms) {
  return report([&] { return cuda::clip_and_sum(batch(*call), max_norm, pointers(*call, outs), norms, nullptr); });
}

const char* lattice_sum(const CBatch* call, double max_norm, double granularity, std::int64_t limit,
                        std::int64_t* const* outs, double* norms) {
  return report([&] {
    return cuda::lattice_sum(batch(*call), max_norm, granularity, limit, pointers(*call, outs), norms, nullptr);
  });
}

}  // extern "C"
