#pragma once
// Bodies of the kernels of the optimizers' steps: no launch, no framework, so that tests/cuda_on_host runs the same
// text on a CPU. docs/update.md defines every operation. The thread that makes a value's noise takes its step too:
// sums, parameters and state are each read and written once.
#include "aisec_fast/update_math.hpp"
#include "noise_body.hpp"

namespace aisec_fast::cuda {
namespace {

// Parameters that one launch updates, side by side: parameter k has the blocks first_block[k] to first_block[k + 1]
// - 1. A launch of its own for each would take longer than the work on most of them.
struct UpdateItems {
  static constexpr unsigned most = 32;  // so that a kernel's arguments stay within 4 KiB
  UpdateItem items[most];
  unsigned first_block[most + 1];

  // Calls use(item, span) for the item of this block.
  template <class Use>
  __device__ void for_item(const Use& use) const {
    unsigned k = 0;
    while (blockIdx.x >= first_block[k + 1]) ++k;
    const unsigned begin = first_block[k], end = first_block[k + 1];
    use(items[k],
        Span{std::uint64_t{blockIdx.x - begin} * blockDim.x + threadIdx.x, std::uint64_t{end - begin} * blockDim.x});
  }
};

// Calls use(i, mean gradient) for each value.
template <class T, class Use>
__device__ void for_means(const UpdateItem& item, const Span& span, T divisor, const Use& use) {
  T* const sums = static_cast<T*>(item.arrays.sums);
  const auto use_mean = [=](std::uint64_t i, T sum) {
    const T mean = sum / divisor;
    sums[i] = mean;
    use(i, mean);
  };
  if (item.noise.scale != 0.0) return for_noisy_values<Law::gaussian, T>(span, sums, item.size, item.noise, use_mean);
  for (std::uint64_t i = span.first; i < item.size; i += span.step) use_mean(i, sums[i]);
}

template <class T>
__device__ void mean_values(const UpdateItem& item, const Span& span, double divisor) {
  for_means<T>(item, span, static_cast<T>(divisor), [](std::uint64_t, T) {});
}

template <Momentum kind, class T>
__device__ void sgd_values(const UpdateItem& item, const Span& span, const SgdStep& step) {
  T* const params = static_cast<T*>(item.arrays.params);
  T* const buffers = static_cast<T*>(item.arrays.state[0]);
  const SgdNumbers<T> numbers(step);
  for_means<T>(item, span, numbers.divisor, [=](std::uint64_t i, T mean) {
    T param = params[i], buffer = kind == Momentum::later ? buffers[i] : T{};
    sgd_value<kind>(mean, param, buffer, numbers);
    params[i] = param;
    if constexpr (kind != Momentum::none) buffers[i] = buffer;
  });
}

template <bool amsgrad, class T>
__device__ void adam_values(const UpdateItem& item, const Span& span, const AdamStep& step) {
  T* const params = static_cast<T*>(item.arrays.params);
  T* const averages = static_cast<T*>(item.arrays.state[0]);
  T* const squares = static_cast<T*>(item.arrays.state[1]);
  T* const largest = static_cast<T*>(item.arrays.state[2]);
  const AdamNumbers<T> numbers(step);
  for_means<T>(item, span, numbers.divisor, [=](std::uint64_t i, T mean) {
    T param = params[i], average = averages[i], square = squares[i], most = amsgrad ? largest[i] : T{};
    adam_value<amsgrad>(mean, param, average, square, most, numbers);
    params[i] = param;
    averages[i] = average;
    squares[i] = square;
    if constexpr (amsgrad) largest[i] = most;
  });
}

}  // namespace
}  // namespace aisec_fast::cuda
