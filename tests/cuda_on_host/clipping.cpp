// The CUDA clipping kernels and their launches, compiled by g++, for ctypes (clipping.py) and for check_clipping.cpp.
#include "clipping.cu"

#include "entry.hpp"

using namespace aisec_fast;

namespace {

// One clipping call as C passes it; results are the norms.
struct CBatch {
  std::int32_t dtype;
  std::size_t rows, count;
  const Gradients* arrays;

  Batch batch() const { return {static_cast<DType>(dtype), rows, {arrays, arrays + count}}; }
  template <class T>
  std::vector<T*> pointers(T* const* outs) const {
    return {outs, outs + count};
  }
};

}  // namespace

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

const char* norms(const CBatch* call, double* norms) {
  return report([&] { return cuda::row_norms(call->batch(), norms, nullptr); });
}

const char* weighted_sum(const CBatch* call, const double* weights, void* const* outs) {
  return report([&] { return cuda::weighted_sum(call->batch(), weights, call->pointers(outs), nullptr); });
}

const char* clip_and_sum(const CBatch* call, double max_norm, void* const* outs, double* norms) {
  return report([&] { return cuda::clip_and_sum(call->batch(), max_norm, call->pointers(outs), norms, nullptr); });
}

const char* lattice_sum(const CBatch* call, double max_norm, double granularity, std::int64_t limit,
                        std::int64_t* const* outs, double* norms) {
  return report([&] {
    return cuda::lattice_sum(call->batch(), max_norm, granularity, limit, call->pointers(outs), norms, nullptr);
  });
}

}  // extern "C"
