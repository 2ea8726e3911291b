#pragma once
// The C functions of noise.cpp.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/kernels.hpp"

extern "C" {
void set_order(unsigned order);
const char* add_gaussian(int x_type, const void* x, int out_type, void* out, std::size_t count,
                         const aisec_fast::NoiseCall* call);
const char* add_laplace(int type, const void* x, void* out, std::size_t count, const aisec_fast::NoiseCall* call);
// To samples first to count - 1 of a longer array, which are all that x and out hold; `first` is a multiple of 128.
const char* add_laplace_from(const float* x, float* out, std::uint64_t first, std::uint64_t count,
                             const aisec_fast::NoiseCall* call);
const char* add_float(int law, int type, const void* x, void* out, std::size_t count,
                      const aisec_fast::NoiseCall* call);
const char* random_words(std::uint64_t* out, std::size_t count, const aisec_fast::NoiseCall* call,
                         std::uint32_t domain);
const char* first_unfit(int type, const void* x, std::size_t count, double granularity, std::size_t* first);
}
