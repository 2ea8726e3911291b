#include "clipping.cuh"

#include "clipping_body.hpp"
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
  auto* factors = queue.scratch<double>(batch.rows);
  with_type(batch, [&](const auto& matrices, auto zero) {
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
