#pragma once
// The arrays and numbers of one adversarial step, checked, for both modules.
#include "aisec_fast/array_view.hpp"

namespace aisec_fast {

struct AdversarialCall {
  DType dtype;
  std::size_t rows;
  AdversarialStep step;
};

// Arrays of one shape [B, ...]; devices are the caller's to check.
inline AdversarialCall adversarial_call(const ArrayView& adv, const ArrayView& x, const ArrayView& gradient,
                                        const ArrayView& out, double step_size, double eps, double low, double high) {
  if (x.dtype() != DType::float32) x.of_type(DType::float64);
  if (x.dimensions() == 0) throw py::value_error("x has no dimensions, expected [B, ...]");
  for (const ArrayView* view : {&adv, &x, &gradient, &out}) view->of_type(x.dtype()).contiguous().of_size(x.size());
  out.writable();
  std::size_t columns = 1;
  for (std::size_t axis = 1; axis < x.dimensions(); ++axis) columns *= x.size(axis);
  return {x.dtype(),
          x.size(0),
          {adv.data<const void>(), x.data<const void>(), gradient.data<const void>(), out.data<void>(), columns,
           step_size, eps, low, high}};
}

}  // namespace aisec_fast
