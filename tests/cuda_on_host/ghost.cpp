// The CUDA kernels of the ghost family and their launches, compiled by g++, for ctypes (ghost.py) and for
// check_ghost.cpp.
#include "ghost.cu"

#include "entry.hpp"
#include "ghost_entry.hpp"

using namespace aisec_fast;

extern "C" {

void set_order(unsigned order) { host_cuda::order = order; }

const char* gram_squares(const GramShape* shape, std::size_t batch, const float* inputs, const float* outputs,
                         double* squares, double* bounds) {
  return report([&] { return cuda::gram_squares(*shape, batch, inputs, outputs, squares, bounds, nullptr); });
}

const char* conv_gram_squares(const ConvShape* shape, std::size_t batch, const float* activation, const float* gradient,
                              double* squares, double* bounds) {
  return report([&] { return cuda::conv_gram_squares(*shape, batch, activation, gradient, squares, bounds, nullptr); });
}

const char* conv_rows(const ConvShape* shape, std::size_t batch, const float* activation, const float* gradient,
                      float* rows, double* squares, double* bounds) {
  return report([&] { return cuda::conv_rows(*shape, batch, activation, gradient, rows, squares, bounds, nullptr); });
}

}  // extern "C"
