#pragma once
// Launches of the kernels that measure rows.
#include <vector>

#include "queue.hpp"
#include "row_norms_body.hpp"

namespace aisec_fast::cuda {
namespace {

template <class Values>
__global__ void __launch_bounds__(block_threads)
    block_sums_kernel(Values values, const double* multipliers, double* sums) {
  block_sums(values, multipliers, sums);
}

__global__ void __launch_bounds__(block_threads)
    add_block_sums_kernel(const double* sums, std::uint64_t rows, std::uint64_t blocks, const double* multipliers,
                          double* totals) {
  add_block_sums(sums, rows, blocks, multipliers, totals);
}

__global__ void __launch_bounds__(block_threads)
    choose_multipliers_kernel(std::uint64_t rows, double* totals, double* multipliers) {
  choose_multipliers(rows, totals, multipliers);
}

__global__ void __launch_bounds__(block_threads)
    norms_of_totals_kernel(std::uint64_t rows, const double* totals, const double* multipliers, double* norms) {
  norms_of_totals(rows, totals, multipliers, norms);
}

__global__ void __launch_bounds__(block_threads)
    clip_factors_kernel(std::uint64_t rows, const double* norms, double max_norm, double* factors) {
  clip_factors(rows, norms, max_norm, factors);
}

// Sixteen threads a block of 1024 columns.
template <class Values>
std::uint64_t team_threads(const Values& values) {
  return values.rows * norm_blocks(values) * partial_sums;
}

// totals[row] += the array totals, in list order. The arrays take turns in `sums`: a stream runs its work in order.
template <class Values>
void queue_totals(Queue& queue, const std::vector<Values>& arrays, const double* multipliers, double* sums,
                  double* totals) {
  for (const Values& values : arrays) {
    queue.run(team_threads(values), block_sums_kernel<Values>, values, multipliers, sums);
    if (values.columns > 0)
      queue.run(values.rows * block_threads, add_block_sums_kernel, sums, values.rows, norm_blocks(values), multipliers,
                totals);
  }
}

template <class Values>
void queue_norms(Queue& queue, const std::vector<Values>& arrays, double* norms) {
  const std::uint64_t rows = arrays[0].rows;
  std::uint64_t most_blocks = 0;
  for (const Values& values : arrays)
    most_blocks = norm_blocks(values) > most_blocks ? norm_blocks(values) : most_blocks;
  auto* sums = queue.scratch<double>(rows * most_blocks);
  auto* totals = queue.scratch<double>(rows);
  queue.fill_bytes(totals, 0, rows);
  queue_totals(queue, arrays, nullptr, sums, totals);
  double* multipliers = nullptr;
  if (Values::squares_leave_range) {
    multipliers = queue.scratch<double>(rows);
    queue.run(rows, choose_multipliers_kernel, rows, totals, multipliers);
    queue_totals(queue, arrays, multipliers, sums, totals);
  }
  queue.run(rows, norms_of_totals_kernel, rows, totals, multipliers, norms);
}

}  // namespace
}  // namespace aisec_fast::cuda
