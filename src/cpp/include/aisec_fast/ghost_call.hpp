#pragma once
// The arrays and numbers of one call of the ghost family, checked, for both modules. Devices are the caller's to check.
#include <array>

#include "aisec_fast/array_view.hpp"

namespace aisec_fast {

using Pair = std::array<std::size_t, 2>;

inline void check_norms(const ArrayView& squares, const ArrayView& bounds, std::size_t batch) {
  for (const ArrayView* view : {&squares, &bounds})
    view->of_type(DType::float64).contiguous().of_size(batch).writable();
}

// For conv_rows: null for an empty array, which says that no bounds are wanted.
inline double* wanted(const ArrayView& bounds) { return bounds.size() == 0 ? nullptr : bounds.data<double>(); }

// Contiguous float32 with so many dimensions.
inline void check_input(const ArrayView& view, std::size_t dimensions) {
  view.of_type(DType::float32).contiguous();
  if (view.dimensions() != dimensions)
    throw py::value_error(view.name() + " has " + std::to_string(view.dimensions()) + " dimensions, expected " +
                          std::to_string(dimensions));
}

inline GramShape gram_shape(const ArrayView& inputs, const ArrayView& outputs, const ArrayView& squares,
                            const ArrayView& bounds) {
  check_input(inputs, 3);
  check_input(outputs, 3);
  if (inputs.size(0) != outputs.size(0) || inputs.size(1) != outputs.size(1))
    throw py::value_error("outputs differs from inputs in its batch or its length");
  check_norms(squares, bounds, inputs.size(0));
  return {inputs.size(1), inputs.size(2), outputs.size(2)};
}

inline ConvShape conv_shape(const ArrayView& activation, const ArrayView& gradient, const Pair& kernel,
                            const Pair& stride, const Pair& before, const Pair& dilation, std::size_t groups,
                            const ArrayView& squares, const ArrayView& bounds) {
  check_input(activation, 4);
  check_input(gradient, 4);
  if (activation.size(0) != gradient.size(0)) throw py::value_error("gradient has another batch than activation");
  for (std::size_t axis = 1; axis < 4; ++axis)
    if (activation.size(axis) == 0 || gradient.size(axis) == 0)
      throw py::value_error("activation and gradient must not be empty but for their batch");
  for (const Pair* pair : {&kernel, &stride, &dilation})
    if ((*pair)[0] == 0 || (*pair)[1] == 0) throw py::value_error("kernel, stride and dilation must be at least 1");
  if (groups == 0 || activation.size(1) % groups != 0 || gradient.size(1) % groups != 0)
    throw py::value_error("groups must divide the channels of activation and of gradient");
  check_norms(squares, bounds, activation.size(0));
  return {activation.size(1),
          activation.size(2),
          activation.size(3),
          gradient.size(1),
          gradient.size(2),
          gradient.size(3),
          {kernel[0], kernel[1]},
          {stride[0], stride[1]},
          {before[0], before[1]},
          {dilation[0], dilation[1]},
          groups};
}

// Values of one sample's gradient.
inline std::size_t row_size(const ConvShape& shape) {
  return shape.out_channels * (shape.channels / shape.groups) * shape.kernel[0] * shape.kernel[1];
}

}  // namespace aisec_fast
