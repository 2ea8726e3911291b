#pragma once
// Launches of the kernels that measure rows.
#include <type_traits>
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

template <class Done>
__global__ void __launch_bounds__(block_threads)
    add_block_sums_kernel(const double* sums, std::uint64_t rows, std::uint64_t blocks, const double* multipliers,
                          bool first, double* totals, Done done) {
  add_block_sums(sums, rows, blocks, multipliers, first, totals, done);
}

__global__ void __launch_bounds__(block_threads)
    choose_multipliers_kernel(std::uint64_t rows, double* totals, double* multipliers) {
  choose_multipliers(rows, totals, multipliers);
}

template <class Keep>
__global__ void __launch_bounds__(block_threads)
    norms_of_totals_kernel(std::uint64_t rows, const double* totals, const double* multipliers, Keep keep) {
  norms_of_totals(rows, totals, multipliers, keep);
}

// Sixteen threads a block of 1024 columns.
template <class Values>
std::uint64_t team_threads(const Values& values) {
  return values.rows * norm_blocks(values) * partial_sums;
}

struct NotYet {
  __device__ void operator()(std::uint64_t, double) const {}
};
template <class Keep>
struct KeepRoot {
  Keep keep;
  __device__ void operator()(std::uint64_t row, double total) const { keep(row, sqrt(total)); }
};

// totals[row] += the array totals, in list order, the first of them to 0 if `anew`; done(row, total) after the last.
// The arrays take turns in `sums`: a stream runs its work in order.
template <class Values, class Done>
void queue_totals(Queue& queue, const std::vector<Values>& arrays, const double* multipliers, bool anew, double* sums,
                  double* totals, const Done& done) {
  for (std::size_t a = 0; a < arrays.size(); ++a) {
    const Values& values = arrays[a];
    const auto add = [&](const auto& what) {
      queue.run(values.rows * partial_sums, add_block_sums_kernel<std::decay_t<decltype(what)>>, sums, values.rows,
                norm_blocks(values), multipliers, anew && a == 0, totals, what);
    };
    queue.run(team_threads(values), block_sums_kernel<Values>, values, multipliers, sums);
    if (a + 1 == arrays.size())
      add(done);
    else
      add(NotYet{});
  }
}

// keep(row, norm) for each row of the arrays together.
template <class Values, class Keep>
void queue_norms(Queue& queue, const std::vector<Values>& arrays, const Keep& keep) {
  const std::uint64_t rows = arrays[0].rows;
  std::uint64_t most_blocks = 0;
  for (const Values& values : arrays)
    most_blocks = norm_blocks(values) > most_blocks ? norm_blocks(values) : most_blocks;
  auto* sums = queue.scratch<double>(rows * (most_blocks + (Values::squares_leave_range ? 2 : 1)));
  double* const totals = sums + rows * most_blocks;
  if (!Values::squares_leave_range)
    return queue_totals(queue, arrays, nullptr, true, sums, totals, KeepRoot<Keep>{keep});
  double* const multipliers = totals + rows;
  queue_totals(queue, arrays, nullptr, true, sums, totals, NotYet{});
  queue.run(rows, choose_multipliers_kernel, rows, totals, multipliers);
  queue_totals(queue, arrays, multipliers, false, sums, totals, NotYet{});
  queue.run(rows, norms_of_totals_kernel<Keep>, rows, totals, multipliers, keep);
}

}  // namespace
}  // namespace aisec_fast::cuda
