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
// 256 threads add to samples first to count - 1, which is all that x and out hold, 2^32 blocks of ChaCha from the
// start.
const char* add_far_laplace(const float* x, float* out, std::uint64_t first, std::uint64_t count,
                            const aisec_fast::NoiseCall* call);
const char* add_float(int law, int type, const void* x, void* out, std::size_t count,
                      const aisec_fast::NoiseCall* call);
const char* random_words(std::uint64_t* out, std::size_t count, const aisec_fast::NoiseCall* call,
                         std::uint32_t domain);
const char* first_unfit(int type, const void* x, std::size_t count, double granularity, std::size_t* first);
}
