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
// `ahead` are on their way, so that one thread a column fills the memory's bandwidth. Blocks have at least `ahead`
// threads.
template <class Sum, unsigned ahead, class T, class Add, class Store>
__device__ void column_sums(const Matrix<T>& matrix, const double* factors, const Add& add, const Store& store) {
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

// Rows on their way where there are columns enough for all processors.
template <class T>
constexpr unsigned usual_ahead = sizeof(T) == sizeof(double) ? 16 : 32;

// out[c] = sum of weights[row] * value, rows in order; a weight of 0 selects a row away.
template <unsigned ahead, class T, class Out>
__device__ void weighted_sum(const Matrix<T>& matrix, const double* weights, Out* out) {
  const auto add = [](double total, double weight, T value) {
    const double sum = total + weight * widen(value);
    return weight != 0.0 ? sum : total;
  };
  column_sums<double, ahead>(matrix, weights, add,
                             [&](std::uint64_t column, double total) { out[column] = static_cast<Out>(total); });
}

template <class T>
__device__ std::int64_t lattice_integer(T value, double factor) {
  const double scaled = widen(value) * factor;
  return static_cast<std::int32_t>(factor != 0.0 ? scaled : 0.0);  // toward zero
}

// In lane k % 16 of the warp, for each of its lanes' 16 values: the sum over the warp of value k. Each step halves the
// values that a lane keeps, so that all 16 sums cost as many shuffles as one and a half by themselves.
__device__ inline unsigned long long sums_over_warp(unsigned long long (&values)[16]) {
  const unsigned lane = threadIdx.x % warp_threads;
  for (unsigned half = 8; half > 0; half /= 2)
    for (unsigned k = 0; k < half; ++k) {
      const bool upper = (lane & half) != 0;
      const unsigned long long given = upper ? values[k] : values[k + half],
                               kept = upper ? values[k + half] : values[k];
      values[k] = kept + __shfl_xor_sync(~0u, given, half);
    }
  return values[0] + __shfl_xor_sync(~0u, values[0], 16u);
}

// out[c] = the sum of the rows' lattice integers, and square_sums[row] += their squares, in one pass over memory: sums
// of integers do not depend on their order. Rows that turn out to be too long are taken away afterwards.
template <class T>
__device__ void lattice_sum(const Matrix<T>& matrix, const double* factors, std::int64_t* out,
                            unsigned long long* square_sums) {
  constexpr unsigned ahead = 16;
  __shared__ double tiles[2][ahead];
  __shared__ unsigned long long squares[2][block_threads / warp_threads][ahead];  // of a tile, for each warp
  unsigned turn = 0;  // what a turn leaves in shared memory is read after the next one's barrier
  std::uint64_t done = 0;
  const auto add_squares = [&](unsigned of) {
    if (threadIdx.x >= ahead || done + threadIdx.x >= matrix.rows) return;
    unsigned long long sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / warp_threads; ++warp) sum += squares[of][warp][threadIdx.x];
    if (sum != 0) atomicAdd(&square_sums[done + threadIdx.x], sum);
  };
  bool some = false;
  for (std::uint64_t base = std::uint64_t{blockIdx.x} * blockDim.x; base < matrix.columns; base += index_step()) {
    const std::uint64_t column = base + threadIdx.x;
    const bool mine = column < matrix.columns;
    const T* place = matrix.data + (mine ? column : matrix.columns - 1);
    std::int64_t sum = 0;
    T values[2][ahead];
    const auto fetch = [&](T(&to)[ahead], std::uint64_t row) {
      const std::uint64_t left = row < matrix.rows ? matrix.rows - row : 0;
      for (unsigned k = 0; k < ahead; ++k, place += matrix.stride) to[k] = k < left ? *place : T{};
    };
    const auto add_rows = [&](T(&now)[ahead], T(&next)[ahead], std::uint64_t row) {
      if (row >= matrix.rows) return;
      fetch(next, row + ahead);
      double (&tile)[ahead] = tiles[turn % 2];
      if (threadIdx.x < ahead) tile[threadIdx.x] = row + threadIdx.x < matrix.rows ? factors[row + threadIdx.x] : 0.0;
      __syncthreads();  // the factors are there, and the squares of the turn before
      if (some) add_squares((turn + 1) % 2);
      unsigned long long own[ahead];
      for (unsigned k = 0; k < ahead; ++k) {
        const std::int64_t t = lattice_integer(now[k], tile[k]);
        sum += t;
        own[k] = mine ? static_cast<unsigned long long>(t * t) : 0;
      }
      const unsigned long long total = sums_over_warp(own);
      const unsigned lane = threadIdx.x % warp_threads;
      if (lane < ahead) squares[turn % 2][threadIdx.x / warp_threads][lane] = total;
      done = row;
      some = true;
      ++turn;
    };
    fetch(values[0], 0);
    for (std::uint64_t row = 0; row < matrix.rows; row += 2 * ahead) {
      add_rows(values[0], values[1], row);
      add_rows(values[1], values[0], row + ahead);
    }
    if (mine) out[column] = sum;
  }
  __syncthreads();  // the last turn's squares are there
  if (some) add_squares((turn + 1) % 2);
}

// A row counts only if its squares sum to at most `limit`: the sensitivity is proved by this line, not by the norm. The
// factors of rows that count become 0, and *any is set if there are others.
__device__ inline void find_long_rows(std::uint64_t rows, const unsigned long long* square_sums, std::int64_t limit,
                                      double* factors, unsigned* any) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step()) {
    const bool too_long = static_cast<std::int64_t>(square_sums[row]) > limit;
    if (!too_long) factors[row] = 0.0;
    if (too_long) *any = 1;
  }
}

// out[c] -= what the rows with factors gave it.
template <class T>
__device__ void take_away(const Matrix<T>& matrix, const double* factors, const unsigned* any, std::int64_t* out) {
  if (*any == 0) return;
  const auto add = [](std::int64_t total, double factor, T value) { return total + lattice_integer(value, factor); };
  column_sums<std::int64_t, usual_ahead<T>>(matrix, factors, add,
                                            [&](std::uint64_t column, std::int64_t total) { out[column] -= total; });
}

}  // namespace
}  // namespace aisec_fast::cuda
