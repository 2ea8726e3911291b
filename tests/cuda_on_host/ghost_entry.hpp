#pragma once
// The C functions of ghost.cpp.
#include <cstddef>

#include "aisec_fast/kernels.hpp"

extern "C" {
void set_order(unsigned order);
const char* gram_squares(const aisec_fast::GramShape* shape, std::size_t batch, const float* inputs,
                         const float* outputs, double* squares, double* bounds);
const char* conv_gram_squares(const aisec_fast::ConvShape* shape, std::size_t batch, const float* activation,
                              const float* gradient, double* squares, double* bounds);
const char* conv_rows(const aisec_fast::ConvShape* shape, std::size_t batch, const float* activation,
                      const float* gradient, float* rows, double* squares, double* bounds);
}
