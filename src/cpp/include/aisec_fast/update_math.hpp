#pragma once
// One value's step of an optimizer, shared by CPU and CUDA kernels. docs/update.md defines every operation and their
// order. All arithmetic is T's, with numbers that were rounded to T once.
#include "aisec_fast/host_device.hpp"
#include "aisec_fast/kernels.hpp"

namespace aisec_fast {
namespace {

enum class Momentum { none, first, later };

AISEC_HD Momentum momentum_of(const SgdStep& step) {
  return step.momentum == 0.0 ? Momentum::none : step.first ? Momentum::first : Momentum::later;
}

template <class T>
struct SgdNumbers {
  T divisor, lr, momentum, undampened, weight_decay;
  bool decays, nesterov, maximize;

  AISEC_HD explicit SgdNumbers(const SgdStep& step)
      : divisor(static_cast<T>(step.divisor)),
        lr(static_cast<T>(step.lr)),
        momentum(static_cast<T>(step.momentum)),
        undampened(static_cast<T>(1.0 - step.dampening)),
        weight_decay(static_cast<T>(step.weight_decay)),
        decays(step.weight_decay != 0.0),
        nesterov(step.nesterov),
        maximize(step.maximize) {}
};

template <class T>
struct AdamNumbers {
  T divisor, weight, rest, beta2, weight2, step_size, root_correction, eps, weight_decay, decay;
  bool near, decays, maximize;

  AISEC_HD explicit AdamNumbers(const AdamStep& step)
      : divisor(static_cast<T>(step.divisor)),
        weight(static_cast<T>(1.0 - step.beta1)),
        rest(T{1} - weight),
        beta2(static_cast<T>(step.beta2)),
        weight2(static_cast<T>(1.0 - step.beta2)),
        step_size(static_cast<T>(step.step_size)),
        root_correction(static_cast<T>(step.root_correction)),
        eps(static_cast<T>(step.eps)),
        weight_decay(static_cast<T>(step.weight_decay)),
        decay(static_cast<T>(step.decay)),
        near(weight < static_cast<T>(0.5)),
        decays(step.weight_decay != 0.0),
        maximize(step.maximize) {}
};

// The gradient as the step sees it.
template <class T>
AISEC_HD T directed(T mean, T param, T weight_decay, bool decays, bool maximize) {
  const T gradient = maximize ? -mean : mean;
  return decays ? gradient + weight_decay * param : gradient;
}

// `buffer` is not read for Momentum::first, and nothing at all for none.
template <Momentum kind, class T>
AISEC_HD void sgd_value(T mean, T& param, T& buffer, const SgdNumbers<T>& numbers) {
  T step = directed(mean, param, numbers.weight_decay, numbers.decays, numbers.maximize);
  if constexpr (kind != Momentum::none) {
    const T moved = kind == Momentum::first ? step : numbers.momentum * buffer + numbers.undampened * step;
    buffer = moved;
    step = numbers.nesterov ? step + numbers.momentum * moved : moved;
  }
  param = param - numbers.lr * step;
}

AISEC_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}
AISEC_HD double square_root(double value) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(value);
#else
  return __builtin_sqrt(value);
#endif
}

// `largest` is exp_avg_sq's largest value so far (AMSGrad), and not touched without `amsgrad`.
template <bool amsgrad, class T>
AISEC_HD void adam_value(T mean, T& param, T& average, T& square, T& largest, const AdamNumbers<T>& numbers) {
  const T decayed = numbers.decay * param;
  const T gradient = directed(mean, decayed, numbers.weight_decay, numbers.decays, numbers.maximize);
  const T change = gradient - average;
  average = numbers.near ? average + numbers.weight * change : gradient - change * numbers.rest;
  square = numbers.beta2 * square + (numbers.weight2 * gradient) * gradient;
  T second = square;
  if constexpr (amsgrad) {
    second = largest >= square || largest != largest ? largest : square;  // NaN stays
    largest = second;
  }
  const T denominator = square_root(second) / numbers.root_correction + numbers.eps;
  param = decayed - (numbers.step_size * average) / denominator;
}

}  // namespace
}  // namespace aisec_fast
