#include "update.cuh"

#include "queue.hpp"
#include "update_body.hpp"

namespace aisec_fast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, noise_blocks) mean_kernel(UpdateItem item, double divisor) {
  mean_values<T>(item, divisor);
}

template <Momentum kind, class T>
__global__ void __launch_bounds__(block_threads, noise_blocks) sgd_kernel(UpdateItem item, SgdStep step) {
  sgd_values<kind, T>(item, step);
}

template <bool amsgrad, class T>
__global__ void __launch_bounds__(block_threads, noise_blocks) adam_kernel(UpdateItem item, AdamStep step) {
  adam_values<amsgrad, T>(item, step);
}

template <class Number>
cudaError_t run(const std::vector<UpdateItem>& items, void (*kernel)(UpdateItem, Number), const Number& number,
                cudaStream_t stream) {
  Queue queue(stream);
  for (const UpdateItem& item : items)
    queue.run(item.noise.scale != 0.0 ? noise_threads(item.size) : item.size, kernel, item, number);
  return queue.finish();
}

template <class T>
cudaError_t run_sgd(const std::vector<UpdateItem>& items, const SgdStep& step, cudaStream_t stream) {
  switch (momentum_of(step)) {
    case Momentum::none:
      return run(items, sgd_kernel<Momentum::none, T>, step, stream);
    case Momentum::first:
      return run(items, sgd_kernel<Momentum::first, T>, step, stream);
    default:
      return run(items, sgd_kernel<Momentum::later, T>, step, stream);
  }
}

template <class T>
cudaError_t run_adam(const std::vector<UpdateItem>& items, const AdamStep& step, cudaStream_t stream) {
  const bool amsgrad = !items.empty() && items[0].arrays.state[2] != nullptr;
  return amsgrad ? run(items, adam_kernel<true, T>, step, stream) : run(items, adam_kernel<false, T>, step, stream);
}

}  // namespace

cudaError_t noisy_mean(DType type, const std::vector<UpdateItem>& items, double divisor, cudaStream_t stream) {
  return type == DType::float64 ? run(items, mean_kernel<double>, divisor, stream)
                                : run(items, mean_kernel<float>, divisor, stream);
}

cudaError_t sgd_step(DType type, const std::vector<UpdateItem>& items, const SgdStep& step, cudaStream_t stream) {
  return type == DType::float64 ? run_sgd<double>(items, step, stream) : run_sgd<float>(items, step, stream);
}

cudaError_t adam_step(DType type, const std::vector<UpdateItem>& items, const AdamStep& step, cudaStream_t stream) {
  return type == DType::float64 ? run_adam<double>(items, step, stream) : run_adam<float>(items, step, stream);
}

}  // namespace aisec_fast::cuda
