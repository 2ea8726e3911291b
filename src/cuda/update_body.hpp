#pragma once
// Bodies of the kernels of the optimizers' steps: no launch, no framework, so that tests/cuda_on_host runs the same
// text on a CPU. docs/update.md defines every operation. The thread that makes a value's noise takes its step too:
// sums, parameters and state are each read and written once.
#include "aisec_fast/update_math.hpp"
#include "noise_body.hpp"

namespace aisec_fast::cuda {
namespace {

// Calls use(i, mean gradient) for each value.
template <class T, class Use>
__device__ void for_means(const UpdateItem& item, T divisor, const Use& use) {
  T* const sums = static_cast<T*>(item.arrays.sums);
  const auto use_mean = [&](std::uint64_t i, T sum) {
    const T mean = sum / divisor;
    sums[i] = mean;
    use(i, mean);
  };
  if (item.noise.scale != 0.0) return for_noisy_values<Law::gaussian, T>(sums, item.size, item.noise, use_mean);
  for (std::uint64_t i = first_index(); i < item.size; i += index_step()) use_mean(i, sums[i]);
}

template <class T>
__device__ void mean_values(const UpdateItem& item, double divisor) {
  for_means<T>(item, static_cast<T>(divisor), [](std::uint64_t, T) {});
}

template <Momentum kind, class T>
__device__ void sgd_values(const UpdateItem& item, const SgdStep& step) {
  T* const params = static_cast<T*>(item.arrays.params);
  T* const buffers = static_cast<T*>(item.arrays.state[0]);
  const SgdNumbers<T> numbers(step);
  for_means<T>(item, numbers.divisor, [&](std::uint64_t i, T mean) {
    T param = params[i], buffer = kind == Momentum::later ? buffers[i] : T{};
    sgd_value<kind>(mean, param, buffer, numbers);
    params[i] = param;
    if constexpr (kind != Momentum::none) buffers[i] = buffer;
  });
}

template <bool amsgrad, class T>
__device__ void adam_values(const UpdateItem& item, const AdamStep& step) {
  T* const params = static_cast<T*>(item.arrays.params);
  T* const averages = static_cast<T*>(item.arrays.state[0]);
  T* const squares = static_cast<T*>(item.arrays.state[1]);
  T* const largest = static_cast<T*>(item.arrays.state[2]);
  const AdamNumbers<T> numbers(step);
  for_means<T>(item, numbers.divisor, [&](std::uint64_t i, T mean) {
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
