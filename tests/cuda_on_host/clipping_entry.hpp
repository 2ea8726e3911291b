#pragma once
// The C functions of clipping.cpp.
#include <cstddef>
#include <cstdint>

#include "clipping.hpp"

// The gradients of one call as C passes them.
struct CBatch {
  std::int32_t dtype;
  std::size_t rows, count;
  const aisec_fast::Gradients* arrays;
};

extern "C" {
void set_order(unsigned order);
unsigned set_processors(unsigned processors, unsigned most_blocks, int architecture);
const char* norms(const CBatch* call, double* norms);
const char* weighted_sum(const CBatch* call, const double* weights, void* const* outs);
const char* clip_and_sum(const CBatch* call, double max_norm, void* const* outs, double* norms);
const char* lattice_sum(const CBatch* call, double max_norm, double granularity, std::int64_t limit,
                        std::int64_t* const* outs, double* norms);
}
