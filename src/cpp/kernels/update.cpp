// Kernels of the optimizers' steps, compiled once per instruction set. docs/update.md defines every operation. The
// arrays of a step have no memory in common.
#include "aisec_fast/update_math.hpp"
#include "kernels/families.hpp"
#include "kernels/standard_arithmetic.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// The reciprocal of a power of two, else 0: multiplying by it rounds the same number as the division, which takes
// longer than all the rest of a step.
template <class T>
T exact_reciprocal(T divisor) {
  int exponent = 0;
  const bool power = __builtin_frexp(static_cast<double>(divisor), &exponent) == 0.5;
  return power && exponent > -100 && exponent < 100 ? T{1} / divisor : T{0};
}

template <class T>
void mean(const UpdateArrays& arrays, double divisor, std::size_t first, std::size_t last) {
  const StandardArithmetic arithmetic;
  T* const sums = static_cast<T*>(arrays.sums);
  const T by = static_cast<T>(divisor), reciprocal = exact_reciprocal(by);
  if (reciprocal != T{0})
    for (std::size_t i = first; i < last; ++i) sums[i] = sums[i] * reciprocal;
  else
    for (std::size_t i = first; i < last; ++i) sums[i] = sums[i] / by;
}

template <Momentum kind, bool divides, class T>
void sgd_values(const UpdateArrays& arrays, const SgdNumbers<T>& numbers_, std::size_t first, std::size_t last) {
  T* __restrict const sums = static_cast<T*>(arrays.sums);
  T* __restrict const params = static_cast<T*>(arrays.params);
  T* __restrict const buffers = static_cast<T*>(arrays.state[0]);
  const SgdNumbers<T> numbers = numbers_;
  const T reciprocal = divides ? T{0} : exact_reciprocal(numbers.divisor);
  for (std::size_t i = first; i < last; ++i) {
    const T gradient = divides ? sums[i] / numbers.divisor : sums[i] * reciprocal;
    T param = params[i], buffer = kind == Momentum::later ? buffers[i] : T{};
    sgd_value<kind>(gradient, param, buffer, numbers);
    sums[i] = gradient;
    params[i] = param;
    if constexpr (kind != Momentum::none) buffers[i] = buffer;
  }
}

template <Momentum kind, class T>
void sgd_values(const UpdateArrays& arrays, const SgdNumbers<T>& numbers, std::size_t first, std::size_t last) {
  if (exact_reciprocal(numbers.divisor) == T{0}) return sgd_values<kind, true>(arrays, numbers, first, last);
  sgd_values<kind, false>(arrays, numbers, first, last);
}

template <class T>
void sgd(const UpdateArrays& arrays, const SgdStep& step, std::size_t first, std::size_t last) {
  const StandardArithmetic arithmetic;
  const SgdNumbers<T> numbers(step);
  const Momentum kind = momentum_of(step);
  if (kind == Momentum::none) return sgd_values<Momentum::none>(arrays, numbers, first, last);
  if (kind == Momentum::first) return sgd_values<Momentum::first>(arrays, numbers, first, last);
  sgd_values<Momentum::later>(arrays, numbers, first, last);
}

template <bool amsgrad, class T>
void adam_values(const UpdateArrays& arrays, const AdamNumbers<T>& numbers_, std::size_t first, std::size_t last) {
  T* __restrict const sums = static_cast<T*>(arrays.sums);
  T* __restrict const params = static_cast<T*>(arrays.params);
  T* __restrict const averages = static_cast<T*>(arrays.state[0]);
  T* __restrict const squares = static_cast<T*>(arrays.state[1]);
  T* __restrict const largest = static_cast<T*>(arrays.state[2]);
  const AdamNumbers<T> numbers = numbers_;
  for (std::size_t i = first; i < last; ++i) {
    const T gradient = sums[i] / numbers.divisor;
    T param = params[i], average = averages[i], square = squares[i], most = amsgrad ? largest[i] : T{};
    adam_value<amsgrad>(gradient, param, average, square, most, numbers);
    sums[i] = gradient;
    params[i] = param;
    averages[i] = average;
    squares[i] = square;
    if constexpr (amsgrad) largest[i] = most;
  }
}

template <class T>
void adam(const UpdateArrays& arrays, const AdamStep& step, std::size_t first, std::size_t last) {
  const StandardArithmetic arithmetic;
  const AdamNumbers<T> numbers(step);
  if (arrays.state[2] != nullptr) return adam_values<true>(arrays, numbers, first, last);
  adam_values<false>(arrays, numbers, first, last);
}

template <class T>
UpdateKernels kernels_of() {
  return {mean<T>, sgd<T>, adam<T>};
}

}  // namespace

UpdateKernels update_kernels(DType dtype) {
  return dtype == DType::float64 ? kernels_of<double>() : kernels_of<float>();
}

}  // namespace aisec_fast::AISEC_ISA
