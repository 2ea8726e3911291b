#pragma once
// Bodies of the clipping kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// docs/clipping.md fixes the order of every floating-point sum; compile without contraction into fused multiply-add.
#include "row_norms_body.hpp"

namespace aisec_fast::cuda {
namespace {

// One array of the list: rows lie `stride` values apart.
template <class T>
struct Matrix {
  const T* data;
  std::int64_t stride;
  std::uint64_t rows, columns;

  __device__ const T* row(std::uint64_t index) const { return data + static_cast<std::int64_t>(index) * stride; }
  __device__ double value(std::uint64_t index, std::uint64_t column) const { return widen(row(index)[column]); }
  static constexpr bool squares_leave_range = sizeof(T) == sizeof(double);
};

__device__ inline void lattice_factors(std::uint64_t rows, const double* norms, double max_norm, double granularity,
                                       double* factors) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    factors[row] = lattice_factor(norms[row], max_norm, granularity);
}

// Calls use(row, value) for the rows of a column in their order. Several rows are loaded before the first is used: a
// column is one thread's, and with one load at a time there would be too few in flight to fill the memory's bandwidth.
template <class T, class Use>
__device__ void for_column(const Matrix<T>& matrix, std::uint64_t column, const Use& use) {
  constexpr unsigned ahead = 16;
  const T* place = matrix.data + column;
  std::uint64_t row = 0;
  for (; row + ahead <= matrix.rows; row += ahead) {
    T values[ahead];
    for (unsigned k = 0; k < ahead; ++k, place += matrix.stride) values[k] = *place;
    for (unsigned k = 0; k < ahead; ++k) use(row + k, values[k]);
  }
  for (; row < matrix.rows; ++row, place += matrix.stride) use(row, *place);
}

// out[c] = sum of weights[row] * value, rows in order; a weight of 0 selects a row away. Neighbouring threads,
// neighbouring columns.
template <class T, class Out>
__device__ void weighted_sum(const Matrix<T>& matrix, const double* weights, Out* out) {
  for (std::uint64_t column = first_index(); column < matrix.columns; column += index_step()) {
    double total = 0.0;
    for_column(matrix, column, [&](std::uint64_t row, T value) {
      const double weight = weights[row];
      if (weight != 0.0) total += weight * widen(value);
    });
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
  for_norm_blocks(matrix, [&](std::uint64_t, std::uint64_t row, std::uint64_t begin, std::uint64_t width) {
    const double factor = factors[row];
    if (factor == 0.0) return;
    const T* values = matrix.row(row) + begin;
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
    for_column(matrix, column, [&](std::uint64_t row, T value) {
      const double factor = factors[row];
      if (factor != 0.0) total += lattice_integer(value, factor);
    });
    out[column] = total;
  }
}

}  // namespace
}  // namespace aisec_fast::cuda
