#include "adversarial.cuh"

#include "adversarial_body.hpp"
#include "row_norms.hpp"

namespace aisec_fast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads)
    linf_values_kernel(const T* adv, const T* x, const T* gradient, T* out, std::uint64_t count, T step_size, T eps,
                       T low, T high) {
  linf_values(adv, x, gradient, out, count, step_size, eps, low, high);
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    l2_values_kernel(Changes<T> changes, const double* factors, T low, T high, T* out) {
  l2_values(changes, factors, low, high, out);
}

template <class T>
__global__ void __launch_bounds__(most_row_threads) l1_rows_kernel(std::uint64_t rows, AdversarialStep step) {
  l1_rows<T>(rows, step);
}

template <class T>
__global__ void __launch_bounds__(most_row_threads) l0_rows_kernel(std::uint64_t rows, AdversarialStep step) {
  l0_rows<T>(rows, step);
}

template <class T>
const T* values(const void* data) {
  return static_cast<const T*>(data);
}

template <class T>
cudaError_t run_linf(std::uint64_t rows, const AdversarialStep& step, cudaStream_t stream) {
  Queue queue(stream);
  const std::uint64_t count = rows * step.columns;
  queue.run(linf_threads<T>(count), linf_values_kernel<T>, values<T>(step.adv), values<T>(step.x),
            values<T>(step.gradient), static_cast<T*>(step.out), count, static_cast<T>(step.step_size),
            toward_zero<T>(step.eps), bound_of<T>(step.low), bound_of<T>(step.high));
  return queue.finish();
}

template <class T>
cudaError_t run_l2(std::uint64_t rows, const AdversarialStep& step, cudaStream_t stream) {
  Queue queue(stream);
  auto* moves = queue.scratch<double>(2 * rows);
  double* const factors = moves + rows;
  const Slopes<T> slopes{values<T>(step.gradient), rows, step.columns};
  const Changes<T> changes{values<T>(step.adv), values<T>(step.x), slopes.gradient, moves, rows, step.columns};
  queue_norms<Slopes<T>>(queue, {slopes}, MoveFactor{step.step_size, moves});
  queue_norms<Changes<T>>(queue, {changes}, ClipFactor{nullptr, inner_radius(step.eps, step.columns), factors});
  queue.run(team_threads(changes), l2_values_kernel<T>, changes, factors, bound_of<T>(step.low), bound_of<T>(step.high),
            static_cast<T*>(step.out));
  return queue.finish();
}

cudaError_t run_rows(void (*kernel)(std::uint64_t, AdversarialStep), std::size_t rows, const AdversarialStep& step,
                     cudaStream_t stream) {
  Queue queue(stream);
  if (step.columns > 0) queue.run_blocks_of(row_threads(step.columns), rows, kernel, std::uint64_t{rows}, step);
  return queue.finish();
}

}  // namespace

cudaError_t linf_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream) {
  return type == DType::float64 ? run_linf<double>(rows, step, stream) : run_linf<float>(rows, step, stream);
}

cudaError_t l2_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream) {
  return type == DType::float64 ? run_l2<double>(rows, step, stream) : run_l2<float>(rows, step, stream);
}

cudaError_t l1_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream) {
  return run_rows(type == DType::float64 ? l1_rows_kernel<double> : l1_rows_kernel<float>, rows, step, stream);
}

cudaError_t l0_step(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream) {
  return run_rows(type == DType::float64 ? l0_rows_kernel<double> : l0_rows_kernel<float>, rows, step, stream);
}

}  // namespace aisec_fast::cuda
