#pragma once
// Bodies of the kernels that measure rows, for every family that needs norms: no launch, no framework, so that
// tests/cuda_on_host runs the same text on a CPU. docs/clipping.md fixes the order of every floating-point sum; compile
// without contraction into fused multiply-add.
#include <cmath>

#include "aisec_fast/clipping_math.hpp"
#include "aisec_fast/kernels.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

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

// Rows of values have the members rows, columns and value(row, column), a double, and tell whether squares of what they
// hold may leave the range of float64.
template <class Values>
__host__ __device__ std::uint64_t norm_blocks(const Values& values) {
  return values.columns / norm_block + (values.columns % norm_block != 0);
}

// numerator / divisor: GPUs divide 32 bits several times faster than 64.
__device__ inline std::uint64_t quotient(std::uint64_t numerator, std::uint64_t divisor) {
  if ((numerator | divisor) >> 32 != 0) return numerator / divisor;
  return static_cast<std::uint32_t>(numerator) / static_cast<std::uint32_t>(divisor);
}

// Calls use(value(i)) for i = lane, lane + 16, ... below width, in this order, then use(nothing) some times. As many
// values are on their way at once as it takes to fill the memory's bandwidth.
template <class Value, class Nothing, class Use>
__device__ void for_lane_values(unsigned lane, std::uint64_t width, const Value& value, const Nothing& nothing,
                                const Use& use) {
  constexpr unsigned ahead = sizeof(Nothing) == sizeof(double) ? 16 : 4;
  for (unsigned i = lane; i < width; i += ahead * partial_sums) {
    Nothing values[ahead];
    for (unsigned k = 0; k < ahead; ++k) {
      const unsigned place = i + k * partial_sums;
      values[k] = place < width ? value(place) : nothing;
    }
    for (unsigned k = 0; k < ahead; ++k) use(values[k]);
  }
}

// Calls use(unit, row, begin, width) for each block of 1024 columns of each row; a team's threads make the same calls.
template <class Values, class Use>
__device__ void for_norm_blocks(const Values& values, const Use& use) {
  const std::uint64_t blocks = norm_blocks(values), units = values.rows * blocks;
  for (std::uint64_t unit = first_index() / partial_sums; unit < units; unit += index_step() / partial_sums) {
    const std::uint64_t row = quotient(unit, blocks), begin = (unit - row * blocks) * norm_block;
    const std::uint64_t left = values.columns - begin;
    use(unit, row, begin, left < norm_block ? left : norm_block);
  }
}

// sums[row * blocks + block], of values times the row's multiplier. Without multipliers all are 1; with them, rows
// whose multiplier is 1 have their sums already.
template <class Values>
__device__ void block_sums(const Values& values, const double* multipliers, double* sums) {
  const Team team;
  for_norm_blocks(values, [&](std::uint64_t unit, std::uint64_t row, std::uint64_t begin, std::uint64_t width) {
    const double multiplier = multipliers != nullptr ? multipliers[row] : 1.0;
    if (multipliers != nullptr && multiplier == 1.0) return;
    double sum = 0.0;
    const auto value = [&](unsigned i) { return values.value(row, begin + i) * multiplier; };
    for_lane_values(team.lane, width, value, 0.0, [&](double v) { sum += v * v; });
    sum = team.fold(sum);
    if (team.lane == 0) sums[unit] = sum;
  });
}

// totals[row] += the row's block sums; `first` starts from 0. A team for each row, which then calls done(row, total).
template <class Done>
__device__ void add_block_sums(const double* sums, std::uint64_t rows, std::uint64_t blocks, const double* multipliers,
                               bool first, double* totals, const Done& done) {
  const Team team;
  const std::uint64_t step = index_step() / partial_sums;
  for (std::uint64_t row = first_index() / partial_sums; row < rows; row += step) {
    if (multipliers != nullptr && multipliers[row] == 1.0) continue;
    const double* const own = sums + row * blocks;
    double total = 0.0;
    for_lane_values(team.lane, blocks, [=](std::uint64_t i) { return own[i]; }, 0.0, [&](double v) { total += v; });
    total = team.fold(total);
    if (team.lane != 0) continue;
    total += first ? 0.0 : totals[row];
    totals[row] = total;
    done(row, total);
  }
}

// What becomes of a row's norm, each with an operator()(row, norm).
struct KeepNorm {
  double* norms;
  __device__ void operator()(std::uint64_t row, double norm) const { norms[row] = norm; }
};
struct ClipFactor {
  double* norms;  // null: nobody asks for them
  double max_norm;
  double* factors;
  __device__ void operator()(std::uint64_t row, double norm) const {
    if (norms != nullptr) norms[row] = norm;
    factors[row] = clip_factor(norm, max_norm);
  }
};

// Rows whose total has left the range: a multiplier for another pass, and the total back to zero. Others: 1.
__device__ inline void choose_multipliers(std::uint64_t rows, double* totals, double* multipliers) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step()) {
    multipliers[row] = norm_multiplier(totals[row]);
    if (multipliers[row] != 1.0) totals[row] = 0.0;
  }
}

template <class Keep>
__device__ void norms_of_totals(std::uint64_t rows, const double* totals, const double* multipliers, const Keep& keep) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    keep(row, sqrt(totals[row]) / multipliers[row]);
}

}  // namespace
}  // namespace aisec_fast::cuda
