// Kernels of the adversarial steps, compiled once per instruction set. docs/adversarial.md defines every rounding.
// Results are made in a buffer before they are stored: out may be adv, and the compiler does not vectorise loops that
// store into what they may read.
#include "aisec_fast/adversarial_math.hpp"
#include "kernels/block_sum.hpp"
#include "kernels/families.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t buffered = 256;  // values

// out[i] = value(i) for first <= i < last.
template <class T, class Value>
AISEC_HD void store(T* out, std::size_t first, std::size_t last, const Value& value) {
  alignas(64) T buffer[buffered];
  for (; first + buffered <= last; first += buffered) {
    for (std::size_t j = 0; j < buffered; ++j) buffer[j] = value(first + j);
    memcpy(out + first, buffer, sizeof buffer);
  }
  const std::size_t left = last - first;
  for (std::size_t j = 0; j < left; ++j) buffer[j] = value(first + j);
  for (std::size_t j = 0; j < left; ++j) out[first + j] = buffer[j];
}

template <class T>
void linf_values(const AdversarialStep& step, std::size_t first, std::size_t last) {
  const T *adv = static_cast<const T*>(step.adv), *x = static_cast<const T*>(step.x),
          *gradient = static_cast<const T*>(step.gradient);
  const T step_size = static_cast<T>(step.step_size), eps = toward_zero<T>(step.eps);
  const T low = bound_of<T>(step.low), high = bound_of<T>(step.high);
  store(static_cast<T*>(step.out), first, last,
        [=](std::size_t i) { return linf_value(adv[i], x[i], gradient[i], step_size, eps, low, high); });
}

template <class T>
void l2_rows(const AdversarialStep& step, std::size_t first, std::size_t last) {
  const std::size_t columns = step.columns;
  const double step_size = step.step_size, radius = inner_radius(step.eps, columns);
  const T low = bound_of<T>(step.low), high = bound_of<T>(step.high);
  for (std::size_t row = first; row < last; ++row) {
    const T *adv = static_cast<const T*>(step.adv) + row * columns, *x = static_cast<const T*>(step.x) + row * columns,
            *gradient = static_cast<const T*>(step.gradient) + row * columns;
    const double move = move_factor(step_size, row_norm(columns, [=](std::size_t i) { return slope_of(gradient[i]); }));
    const auto change = [=](std::size_t i) { return change_of(adv[i], x[i], gradient[i], move); };
    const double factor = clip_factor(row_norm(columns, change), radius);
    store(static_cast<T*>(step.out) + row * columns, 0, columns,
          [=](std::size_t i) { return l2_value(x[i], change(i), factor, low, high); });
  }
}

}  // namespace

AdversarialKernels adversarial_kernels() {
  return {linf_values<float>, linf_values<double>, l2_rows<float>, l2_rows<double>};
}

}  // namespace aisec_fast::AISEC_ISA
