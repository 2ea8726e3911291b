#include "clipping.cuh"

#include <algorithm>
#include <type_traits>

#include "clipping_body.hpp"
#include "clipping_once_body.hpp"
#include "row_norms.hpp"

namespace aisec_fast::cuda {
namespace {

template <unsigned ahead, class T, class Out>
__global__ void __launch_bounds__(block_threads)
    weighted_sum_kernel(Matrix<T> matrix, const double* weights, Out* out) {
  weighted_sum<ahead>(matrix, weights, out);
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    lattice_sum_kernel(Matrix<T> matrix, const double* factors, std::int64_t* out, unsigned long long* square_sums) {
  lattice_sum(matrix, factors, out, square_sums);
}

__global__ void __launch_bounds__(block_threads)
    find_long_rows_kernel(std::uint64_t rows, const unsigned long long* square_sums, std::int64_t limit,
                          double* factors, unsigned* any) {
  find_long_rows(rows, square_sums, limit, factors, any);
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    take_away_kernel(Matrix<T> matrix, const double* factors, const unsigned* any, std::int64_t* out) {
  take_away(matrix, factors, any, out);
}

template <unsigned own, class T, class Out>
__global__ void __launch_bounds__(once_threads, 1)
    clip_and_sum_once_kernel(const __grid_constant__ OnceCall<T, Out> call) {
  clip_and_sum_once<own>(call);
}

template <class T>
std::vector<Matrix<T>> matrices_of(const Batch& batch) {
  std::vector<Matrix<T>> matrices;
  for (const Gradients& array : batch.arrays)
    matrices.push_back({static_cast<const T*>(array.data), array.stride, batch.rows, array.columns});
  return matrices;
}

// Calls use(matrices, zero), where zero has the type of the sums' results.
template <class Use>
void with_type(const Batch& batch, const Use& use) {
  if (batch.dtype == DType::float64)
    use(matrices_of<double>(batch), 0.0);
  else if (batch.dtype == DType::bfloat16)
    use(matrices_of<Bfloat16>(batch), 0.0f);
  else
    use(matrices_of<float>(batch), 0.0f);
}

template <class T, class Out>
void queue_sums(Queue& queue, const std::vector<Matrix<T>>& matrices, const double* weights,
                const std::vector<void*>& outs, Out) {
  for (std::size_t a = 0; a < matrices.size(); ++a) {
    // Of few columns there are few threads: each has more rows on their way.
    constexpr unsigned usual = usual_ahead<T>;
    const bool few = queue.is_few(matrices[a].columns);
    const auto kernel = few ? weighted_sum_kernel<2 * usual, T, Out> : weighted_sum_kernel<usual, T, Out>;
    queue.run_apart(matrices[a].columns, kernel, matrices[a], weights, static_cast<Out*>(outs[a]));
  }
}

// Calls use(std::integral_constant<unsigned, own>) with the smallest of these sizes that is at least `least`, and
// returns what it does; else false.
template <unsigned own, unsigned... larger, class Use>
bool with_own(std::uint64_t least, const Use& use) {
  if (least <= own) return use(std::integral_constant<unsigned, own>());
  if constexpr (sizeof...(larger) > 0) return with_own<larger...>(least, use);
  return false;
}

// How rows are shared out that are read once, for adders of `own` blocks; `slots` steps fit into shared memory, or it
// is not done.
template <unsigned own, class T, class Out>
bool fit_once(OnceShares& shares, std::size_t shared_bytes) {
  constexpr unsigned fewest_slots = 4;
  shares.adders = (shares.blocks + own - 1) / own;
  shares.steps = static_cast<unsigned>((shares.rows + rows_together<own> - 1) / rows_together<own>);
  for (unsigned slots = most_once_slots; slots >= fewest_slots; --slots) {
    shares.ahead = slots > 5 ? 2 : 1;
    shares.waiting = slots - 1 - shares.ahead;
    if (once_shared_bytes<own, T, Out>(shares) <= shared_bytes) return true;
  }
  return false;
}

// Clips and adds rows in one reading, if their columns keep most processors busy and there is room.
template <class T, class Out>
bool queue_once(Queue& queue, const std::vector<Matrix<T>>& matrices, double max_norm, const std::vector<void*>& outs,
                double* norms, Out) {
  constexpr unsigned processors_of_teller = 32;
  constexpr std::uint64_t fewest_rows = 16, most_rows = std::uint64_t{1} << 31, most_blocks = std::uint64_t{1} << 16;
  const unsigned processors = queue.processors_together();
  OnceCall<T, Out> call{{}, max_norm, nullptr, nullptr, norms, {}};
  OnceShares& shares = call.shares;
  shares.rows = matrices[0].rows;
  shares.tellers = processors / processors_of_teller + 1;
  if (processors <= shares.tellers || matrices.size() > most_once_arrays) return false;
  if (shares.rows < fewest_rows || shares.rows > most_rows) return false;
  std::uint64_t blocks = 0;
  for (std::size_t a = 0; a < matrices.size(); ++a) {
    const Matrix<T>& matrix = matrices[a];
    const auto places = reinterpret_cast<std::uintptr_t>(matrix.data) | matrix.columns * sizeof(T) |
                        static_cast<std::uintptr_t>(matrix.stride * static_cast<std::int64_t>(sizeof(T)));
    if (blocks + norm_blocks(matrix) > most_blocks) return false;
    if (places % 16 != 0 && matrix.columns > most_crooked) return false;
    OnceArray<T, Out>& array = call.arrays[a];
    array = {matrix.data,
             matrix.stride,
             matrix.columns,
             static_cast<unsigned>(blocks),
             0,
             places % 16 == 0,
             static_cast<Out*>(outs[a])};
    array.blocks = static_cast<unsigned>(norm_blocks(matrix));
    blocks += array.blocks;
  }
  shares.arrays = static_cast<unsigned>(matrices.size());
  shares.blocks = static_cast<unsigned>(blocks);
  const unsigned adders = processors - shares.tellers;
  if (blocks < adders - adders / 4) return false;
  return with_own<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12>((blocks + adders - 1) / adders, [&](auto own) {
    const auto kernel = clip_and_sum_once_kernel<own, T, Out>;
    if (!fit_once<own, T, Out>(shares, queue.most_shared_bytes()) || !queue.has_code_together(kernel)) return false;
    const std::uint64_t values = shares.rows * (std::uint64_t{shares.blocks} + 1);
    call.sums = queue.scratch<double>(values);
    call.factors = call.sums + shares.rows * shares.blocks;
    queue.fill_bytes(call.sums, 0xff, values);
    return queue.run_together(once_threads, shares.adders + shares.tellers, once_shared_bytes<own, T, Out>(shares),
                              kernel, call);
  });
}
// Squares of doubles may leave the range: then all rows are measured again.
inline bool queue_once(Queue&, const std::vector<Matrix<double>>&, double, const std::vector<void*>&, double*, double) {
  return false;
}

template <class T>
void queue_lattice(Queue& queue, const std::vector<Matrix<T>>& matrices, std::int64_t limit, double* factors,
                   const std::vector<std::int64_t*>& outs) {
  const std::uint64_t rows = matrices[0].rows;
  auto* square_sums = queue.scratch<unsigned long long>(rows + 1);
  auto* any = reinterpret_cast<unsigned*>(square_sums + rows);
  queue.fill_bytes(square_sums, 0, rows + 1);
  for (std::size_t a = 0; a < matrices.size(); ++a)
    queue.run_apart(matrices[a].columns, lattice_sum_kernel<T>, matrices[a], factors, outs[a], square_sums);
  queue.run(rows, find_long_rows_kernel, rows, square_sums, limit, factors, any);
  for (std::size_t a = 0; a < matrices.size(); ++a)
    queue.run_apart(matrices[a].columns, take_away_kernel<T>, matrices[a], factors, any, outs[a]);
}

}  // namespace

cudaError_t row_norms(const Batch& batch, double* norms, cudaStream_t stream) {
  Queue queue(stream);
  with_type(batch, [&](const auto& matrices, auto) { queue_norms(queue, matrices, KeepNorm{norms}); });
  return queue.finish();
}

cudaError_t weighted_sum(const Batch& batch, const double* weights, const std::vector<void*>& outs,
                         cudaStream_t stream) {
  Queue queue(stream);
  with_type(batch, [&](const auto& matrices, auto zero) { queue_sums(queue, matrices, weights, outs, zero); });
  return queue.finish();
}

cudaError_t clip_and_sum(const Batch& batch, double max_norm, const std::vector<void*>& outs, double* norms,
                         cudaStream_t stream) {
  Queue queue(stream);
  with_type(batch, [&](const auto& matrices, auto zero) {
    if (queue_once(queue, matrices, max_norm, outs, norms, zero)) return;
    auto* factors = queue.scratch<double>(batch.rows);
    queue_norms(queue, matrices, ClipFactor{norms, max_norm, factors});
    queue_sums(queue, matrices, factors, outs, zero);
  });
  return queue.finish();
}

cudaError_t lattice_sum(const Batch& batch, double max_norm, double granularity, std::int64_t limit,
                        const std::vector<std::int64_t*>& outs, double* norms, cudaStream_t stream) {
  Queue queue(stream);
  auto* factors = queue.scratch<double>(batch.rows);
  with_type(batch, [&](const auto& matrices, auto) {
    queue_norms(queue, matrices, LatticeFactor{norms, max_norm, granularity, factors});
    queue_lattice(queue, matrices, limit, factors, outs);
  });
  return queue.finish();
}

}  // namespace aisec_fast::cuda
