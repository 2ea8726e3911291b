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

struct LatticeFactor {
  double* norms;
  double max_norm, granularity;
  double* factors;
  __device__ void operator()(std::uint64_t row, double norm) const {
    norms[row] = norm;
    factors[row] = lattice_factor(norm, max_norm, granularity);
  }
};

// store(c, sum) with sum = add(...add(0, factors[0], value)..., factors[rows - 1], value) over column c, rows in order,
// where add with a factor of 0 changes nothing. Neighbouring threads, neighbouring columns. While some rows are added,
// as many are on their way as it takes to fill the memory's bandwidth from one thread a column. Blocks have at least
// `ahead` threads.
template <class Sum, class T, class Add, class Store>
__device__ void column_sums(const Matrix<T>& matrix, const double* factors, const Add& add, const Store& store) {
  constexpr unsigned ahead = sizeof(T) == sizeof(double) ? 16 : 32;
  __shared__ double tiles[2][ahead];  // take turns: none is written before all have passed the barrier behind its reads
  for (std::uint64_t base = std::uint64_t{blockIdx.x} * blockDim.x; base < matrix.columns; base += index_step()) {
    const std::uint64_t column = base + threadIdx.x;
    const T* place = matrix.data + (column < matrix.columns ? column : matrix.columns - 1);
    Sum sum{};
    T values[2][ahead];
    const auto rows_from = [&](std::uint64_t row) {
      const std::uint64_t left = row < matrix.rows ? matrix.rows - row : 0;
      return left < ahead ? static_cast<unsigned>(left) : ahead;
    };
    const auto fetch = [&](T(&to)[ahead], std::uint64_t row) {
      const unsigned count = rows_from(row);
      for (unsigned k = 0; k < ahead; ++k, place += matrix.stride) to[k] = k < count ? *place : T{};
    };
    const auto add_rows = [&](T(&now)[ahead], T(&next)[ahead], double (&tile)[ahead], std::uint64_t row) {
      fetch(next, row + ahead);
      if (threadIdx.x < ahead) tile[threadIdx.x] = threadIdx.x < rows_from(row) ? factors[row + threadIdx.x] : 0.0;
      __syncthreads();  // the factors are there; and the compiler cannot put off a load of a value any longer
      for (unsigned k = 0; k < ahead; ++k) sum = add(sum, tile[k], now[k]);
    };
    fetch(values[0], 0);
    for (std::uint64_t row = 0; row < matrix.rows; row += 2 * ahead) {
      add_rows(values[0], values[1], tiles[0], row);
      add_rows(values[1], values[0], tiles[1], row + ahead);
    }
    if (column < matrix.columns) store(column, sum);
  }
}

// out[c] = sum of weights[row] * value, rows in order; a weight of 0 selects a row away.
template <class T, class Out>
__device__ void weighted_sum(const Matrix<T>& matrix, const double* weights, Out* out) {
  const auto add = [](double total, double weight, T value) {
    const double sum = total + weight * widen(value);
    return weight != 0.0 ? sum : total;
  };
  column_sums<double>(matrix, weights, add,
                      [&](std::uint64_t column, double total) { out[column] = static_cast<Out>(total); });
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
  const auto add = [](std::int64_t total, double factor, T value) {
    const double scaled = widen(value) * factor;
    return total + static_cast<std::int32_t>(factor != 0.0 ? scaled : 0.0);  // toward zero
  };
  column_sums<std::int64_t>(matrix, factors, add,
                            [&](std::uint64_t column, std::int64_t total) { out[column] = total; });
}

}  // namespace
}  // namespace aisec_fast::cuda
