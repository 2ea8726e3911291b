#pragma once
// Clipping over blocks of rows and threads, on top of the kernels of one instruction set. Knows nothing of Python.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

// One parameter's per-sample gradients, read as a matrix: `columns` values a row, rows `stride` values apart.
struct Gradients {
  const void* data;
  std::ptrdiff_t stride;
  std::size_t columns;
};

struct Batch {
  DType dtype;
  std::size_t rows;
  std::vector<Gradients> arrays;
};

// outs[a] has arrays[a].columns values: float64 for float64 input, float32 otherwise. norms has `rows` values.
void row_norms(const Batch& batch, double* norms);
void weighted_sum(const Batch& batch, const double* weights, const std::vector<void*>& outs);
void clip_and_sum(const Batch& batch, double max_norm, const std::vector<void*>& outs, double* norms);
// Lattice integers of the clipped rows; a row counts only if its squares sum to at most `limit`.
void lattice_sum(const Batch& batch, double max_norm, double granularity, std::int64_t limit,
                 const std::vector<std::int64_t*>& outs, double* norms);

}  // namespace aisec_fast
