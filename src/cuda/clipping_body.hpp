#pragma once
// Bodies of the clipping kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// docs/clipping.md fixes the order of every floating-point sum; compile without contraction into fused multiply-add.
#include <cmath>

#include "aisec_fast/clipping_math.hpp"
#include "aisec_fast/kernels.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

// One array of the list: rows lie `stride` values apart.
template <class T>
struct Matrix {
  const T* data;
  std::int64_t stride;
  std::uint64_t rows, columns;

  __device__ const T* row(std::uint64_t index) const { return data + static_cast<std::int64_t>(index) * stride; }
  __host__ __device__ std::uint64_t blocks() const { return columns / norm_block + (columns % norm_block != 0); }
};

// Sixteen threads, half a warp, work on one block of up to 1024 values: lane k keeps the partial sum k.
struct Team {
  unsigned lane = threadIdx.x % partial_sums;
  unsigned mask = 0xffffu << (threadIdx.x % warp_threads - threadIdx.x % partial_sums);

  // The sum over the team, in lane 0, folded in the order of docs/clipping.md.
  template <class Sum>
  __device__ Sum fold(Sum sum) const {
    for (unsigned half = partial_sums / 2; half > 0; half /= 2) sum += __shfl_down_sync(mask, sum, half, partial_sums);
    return sum;
  }
};

// Calls use(unit, row, values, width) for each block of 1024 columns of each row; a team's threads make the same calls.
template <class T, class Use>
__device__ void for_norm_blocks(const Matrix<T>& matrix, const Use& use) {
  const std::uint64_t blocks = matrix.blocks(), units = matrix.rows * blocks;
  for (std::uint64_t unit = first_index() / partial_sums; unit < units; unit += index_step() / partial_sums) {
    const std::uint64_t row = unit / blocks, begin = unit % blocks * norm_block, left = matrix.columns - begin;
    use(unit, row, matrix.row(row) + begin, left < norm_block ? left : norm_block);
  }
}

// sums[row * blocks + block], of values times the row's multiplier. Without multipliers all are 1; with them, rows
// whose multiplier is 1 have their sums already.
template <class T>
__device__ void block_sums(const Matrix<T>& matrix, const double* multipliers, double* sums) {
  const Team team;
  for_norm_blocks(matrix, [&](std::uint64_t unit, std::uint64_t row, const T* values, std::uint64_t width) {
    const double multiplier = multipliers != nullptr ? multipliers[row] : 1.0;
    if (multipliers != nullptr && multiplier == 1.0) return;
    double sum = 0.0;
    for (std::uint64_t i = team.lane; i < width; i += partial_sums) {
      const double value = widen(values[i]) * multiplier;
      sum += value * value;
    }
    sum = team.fold(sum);
    if (team.lane == 0) sums[unit] = sum;
  });
}

// totals[row] += the row's block sums, added from left to right. One CUDA block a row: all its threads fetch, one adds.
__device__ inline void add_block_sums(const double* sums, std::uint64_t rows, std::uint64_t blocks,
                                      const double* multipliers, double* totals) {
  __shared__ double tile[block_threads];
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    if (multipliers != nullptr && multipliers[row] == 1.0) continue;
    double total = 0.0;
    for (std::uint64_t begin = 0; begin < blocks; begin += block_threads) {
      const std::uint64_t left = blocks - begin, width = left < block_threads ? left : block_threads;
      if (threadIdx.x < width) tile[threadIdx.x] = sums[row * blocks + begin + threadIdx.x];
      __syncthreads();  // the tile is complete
      if (threadIdx.x == 0)
        for (std::uint64_t i = 0; i < width; ++i) total += tile[i];
      __syncthreads();  // the tile has been read
    }
    if (threadIdx.x == 0) totals[row] += total;
  }
}

// Rows whose total has left the range: a multiplier for another pass, and the total back to zero. Others: 1.
__device__ inline void choose_multipliers(std::uint64_t rows, double* totals, double* multipliers) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step()) {
    const bool fits = totals[row] >= small_total && totals[row] <= largest_finite;
    multipliers[row] = fits ? 1.0 : (totals[row] > largest_finite ? shrink : enlarge);
    if (!fits) totals[row] = 0.0;
  }
}

__device__ inline void norms_of_totals(std::uint64_t rows, const double* totals, const double* multipliers,
                                       double* norms) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    norms[row] = sqrt(totals[row]) / (multipliers != nullptr ? multipliers[row] : 1.0);
}

__device__ inline void clip_factors(std::uint64_t rows, const double* norms, double max_norm, double* factors) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    factors[row] = clip_factor(norms[row], max_norm);
}

__device__ inline void lattice_factors(std::uint64_t rows, const double* norms, double max_norm, double granularity,
                                       double* factors) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    factors[row] = lattice_factor(norms[row], max_norm, granularity);
}

// out[c] = sum of weights[row] * value, rows in order; a weight of 0 selects a row away. Neighbouring threads,
// neighbouring columns.
template <class T, class Out>
__device__ void weighted_sum(const Matrix<T>& matrix, const double* weights, Out* out) {
  for (std::uint64_t column = first_index(); column < matrix.columns; column += index_step()) {
    double total = 0.0;
    for (std::uint64_t row = 0; row < matrix.rows; ++row) {
      const double weight = weights[row];
      if (weight != 0.0) total += weight * widen(matrix.row(row)[column]);
    }
    out[column] = static_cast<Out>(total);
  }
}

template <class T>
__device__ std::int64_t lattice_integer(T value, double factor) {
  return static_cast<std::int32_t>(widen(value) * factor);  // toward zero
}

// square_sums[row] += the squares of the row's lattice integers. Sums of integers do not depend on their order.
template <class T>
__device__ void add_lattice_squares(const Matrix<T>& matrix, const double* factors, unsigned long long* square_sums) {
  const Team team;
  for_norm_blocks(matrix, [&](std::uint64_t, std::uint64_t row, const T* values, std::uint64_t width) {
    const double factor = factors[row];
    if (factor == 0.0) return;
    unsigned long long sum = 0;
    for (std::uint64_t i = team.lane; i < width; i += partial_sums) {
      const std::int64_t t = lattice_integer(values[i], factor);
      sum += static_cast<unsigned long long>(t * t);
    }
    sum = team.fold(sum);
    if (team.lane == 0) atomicAdd(&square_sums[row], sum);
  });
}

// A row counts only if its squares sum to at most `limit`: the sensitivity is proved by this line, not by the norm.
__device__ inline void drop_long_rows(std::uint64_t rows, const unsigned long long* square_sums, std::int64_t limit,
                                      double* factors) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    if (static_cast<std::int64_t>(square_sums[row]) > limit) factors[row] = 0.0;
}

template <class T>
__device__ void lattice_sum(const Matrix<T>& matrix, const double* factors, std::int64_t* out) {
  for (std::uint64_t column = first_index(); column < matrix.columns; column += index_step()) {
    std::int64_t total = 0;
    for (std::uint64_t row = 0; row < matrix.rows; ++row)
      if (factors[row] != 0.0) total += lattice_integer(matrix.row(row)[column], factors[row]);
    out[column] = total;
  }
}

}  // namespace
}  // namespace aisec_fast::cuda
