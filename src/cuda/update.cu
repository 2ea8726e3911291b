#include "update.cuh"

#include "queue.hpp"
#include "update_body.hpp"

namespace aisec_fast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, noise_blocks)
    mean_kernel(const __grid_constant__ UpdateItems items, double divisor) {
  items.for_item([&](const UpdateItem& item, const Span& span) { mean_values<T>(item, span, divisor); });
}

template <Momentum kind, class T>
__global__ void __launch_bounds__(block_threads, noise_blocks)
    sgd_kernel(const __grid_constant__ UpdateItems items, SgdStep step) {
  items.for_item([&](const UpdateItem& item, const Span& span) { sgd_values<kind, T>(item, span, step); });
}

template <bool amsgrad, class T>
__global__ void __launch_bounds__(block_threads, noise_blocks)
    adam_kernel(const __grid_constant__ UpdateItems items, AdamStep step) {
  items.for_item([&](const UpdateItem& item, const Span& span) { adam_values<amsgrad, T>(item, span, step); });
}

template <class Number>
cudaError_t run(const std::vector<UpdateItem>& all, void (*kernel)(UpdateItems, Number), const Number& number,
                cudaStream_t stream) {
  Queue queue(stream);
  UpdateItems items{};
  unsigned count = 0;
  const auto flush = [&] {
    if (count > 0) queue.run_blocks(items.first_block[count], kernel, items, number);
    count = 0;
  };
  for (const UpdateItem& item : all) {
    if (item.size == 0) continue;
    items.items[count] = item;
    items.first_block[count + 1] =
        items.first_block[count] + (item.noise.scale != 0.0
                                        ? queue.resident_blocks(noise_threads(item.size), noise_blocks)
                                        : queue.blocks(item.size));
    if (++count == UpdateItems::most) flush();
  }
  flush();
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
  // Of the arrays with values: an empty one of torch has no address.
  bool amsgrad = false;
  for (const UpdateItem& item : items) amsgrad = amsgrad || item.arrays.state[2] != nullptr;
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
